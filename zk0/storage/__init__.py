"""Files of a session: atomic writes, disk space, the session folder, rollout results, redaction of published text."""

"""The policy that a command line names: a folder, a name on the Hub, `base`, or the session that made it."""

import typer

from zk0.settings.home_folder import expand_home


def find_policy(named: str) -> str:
    """Return the folder of the policy that a session keeps, and print which one; anything else as it is.

    Raises:
        SettingsError: the session has no saved policy.
    """
    from zk0.rules.kept_policy import find_kept_policy
    from zk0.storage.session_folder import SessionFolder

    path = expand_home(named)
    here = SessionFolder(path.parent if path.name == "models" else path)
    if not here.session_toml.is_file():
        return named
    kept = find_kept_policy(here)
    typer.echo(f"policy of the session: {kept.folder} (round {kept.round}; {kept.reason})", err=True)
    return str(kept.folder)

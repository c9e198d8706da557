"""Verify the files of a session, of a saved policy or of a pushed repository against the digests recorded for them."""

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

from pydantic import SecretStr

from zk0.audit.ledger import Ledger
from zk0.audit.policy_digests import late_policies_file, read_late_policies, recorded_policy_files
from zk0.errors import CheckpointError
from zk0.publish.audit_records import VerifiedPart, audit_session, verified_part
from zk0.publish.hub import remote_file_oids
from zk0.publish.push_checkpoint import check_saved_policy
from zk0.records import RoundRecord
from zk0.rules.release import Release
from zk0.settings.session import Session
from zk0.storage.session_folder import SessionFolder
from zk0.storage.sha256_sums import SUMS_FILE, check_sums, sha256_of_file
from zk0.weights.digests import algorithm_name, check_weights


def verify_session(here: SessionFolder) -> Iterator[VerifiedPart]:
    """Verify the records of a session's folder, its weights, server state, saved policies and pushed files.

    A file is missing where the session's settings or the ledger say that it is kept; what a session removes as it goes
    on is not looked for.
    """
    records = list(audit_session(here))
    yield from records
    if records[0].problem:
        return
    history, session = Ledger(here.ledger).read(), here.read_session()
    late = late_policies_file(here)
    if late.is_file():
        covers = "digests of policies that were saved after their rounds, chained to the last line of the ledger"
        part = verified_part(late.name, covers, lambda: read_late_policies(here))
        yield part
        if part.problem:
            return
    for record in history:
        yield from _verify_round(here, record, session, is_last=record == history[-1])
    if here.report.is_file() and not here.release.is_file():  # the report is written after the decision
        yield _missing(here, here.release, "a session with a report has decided on a release")
    if (release := Release.read(here.release)) and release.files:
        folder = here.checkpoint(release.round)
        covers = f"the files of {here.relative(folder)} are those that were pushed (SHA-256)"
        yield verified_part(here.relative(here.release), covers, lambda: _check_pushed(folder, release))


def verify_policy(folder: Path) -> Iterator[VerifiedPart]:
    """Verify the files of a saved policy, also of a downloaded one, against its list of SHA-256 digests."""
    try:
        count = len(check_sums(folder))
    except CheckpointError as e:
        yield VerifiedPart(name=SUMS_FILE, covers="", problem=str(e))
        return
    listed = sha256_of_file(folder / SUMS_FILE)
    yield VerifiedPart(name=SUMS_FILE, covers=f"every bit of {count} files (SHA-256); the list itself has {listed}")


def verify_repository(here: SessionFolder, token: SecretStr | None) -> VerifiedPart:
    """Verify that the repository which a session was pushed to has the recorded files, without downloading them.

    Raises:
        CheckpointError: the session was not pushed.
        PublishError, HubUnavailable: the repository cannot be read.
    """
    release = Release.read(here.release)
    if release is None or release.outcome != "pushed" or release.repo_id is None or release.commit is None:
        raise CheckpointError(f"{here.path}: was not pushed, so there is no repository to verify")
    name = f"{release.repo_id} at {release.commit[:12]}"
    found = remote_file_oids(release.repo_id, release.commit, token)
    folder = here.checkpoint(release.round)
    faults = [
        path
        for path, digest in release.files.items()
        if path not in found or found[path] not in (digest, _git_oid(folder / path))
    ]
    covers = f"{len(release.files)} files on the Hub: large ones by SHA-256 (their oid), others by git's oid"
    problem = f"differ from the pushed files: {', '.join(faults)}" if faults else None
    return VerifiedPart(name=name, covers=covers, problem=problem)


def _verify_round(
    here: SessionFolder, record: RoundRecord, session: Session, *, is_last: bool
) -> Iterator[VerifiedPart]:
    kept = is_last or session.keeps_weights_of(record.round)
    files = [(record.checkpoint.path, record.checkpoint.digest, kept)]
    files += [(state.path, state.digest, is_last) for state in record.server_state]
    for path, digest, must_exist in files:
        if (here.path / path).is_file():
            algorithm = algorithm_name(digest)
            covers = f"name, type, shape and every bit of each trained tensor ({algorithm}, as in the ledger)"
            yield verified_part(path, covers, _check_weights(here.path / path, digest))
        elif must_exist:
            yield _missing(here, here.path / path, f"a session keeps it after round {record.round}")
    folder = here.checkpoint(record.round)
    recorded = recorded_policy_files(here, record)
    if not folder.is_dir() and recorded:
        yield _missing(here, folder, f"the session has recorded the digests of {len(recorded)} files of it")
    if folder.is_dir():
        covers = "every bit of all files (SHA-256), and the trained weights are those of the ledger"
        yield verified_part(here.relative(folder), covers, lambda: _check_policy(here, record))


def _missing(here: SessionFolder, path: Path, why: str) -> VerifiedPart:
    return VerifiedPart(name=here.relative(path), covers="", problem=f"missing, but {why}; restore it from a copy")


def _check_weights(path: Path, digest: str) -> Callable[[], object]:
    return lambda: check_weights(path, digest)


def _check_policy(here: SessionFolder, record: RoundRecord) -> None:
    check_sums(here.checkpoint(record.round))
    check_saved_policy(here, record)


def _check_pushed(folder: Path, release: Release) -> None:
    missing = [name for name in release.files if not (folder / name).is_file()]
    present = (name for name in release.files if name not in missing)
    changed = [name for name in present if sha256_of_file(folder / name) != release.files[name]]
    if missing or changed:
        raise CheckpointError(f"differ from the pushed files: {', '.join([*missing, *changed])}")


def _git_oid(path: Path) -> str:
    """Return the oid that git gives to a file: SHA-1 of a header and the content."""
    content = path.read_bytes() if path.is_file() else b""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()

"""`zk0 verify`: compare the files of a session or of a saved policy with the digests recorded for them."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.cli.errors_to_exit_codes import errors_to_exit_codes
from zk0.errors import CheckpointError, SettingsError

if TYPE_CHECKING:
    from zk0.publish.audit_records import VerifiedPart


def verify(
    folder: Annotated[
        Path, typer.Argument(help="Folder of a session, or of a saved policy (also of a downloaded repository).")
    ],
    on_hub: Annotated[
        bool, typer.Option("--hub", help="Verify the repository that the session was pushed to, too; no download.")
    ] = False,
) -> None:
    """Compare all files of a session or of a saved policy with the digests recorded for them.

    Prints a line for each verified part with what its digest covers. The exit code is 1 if one differs.
    """
    with errors_to_exit_codes():
        print_parts(folder, _verified_parts(folder.resolve(), on_hub))


def print_parts(folder: Path, found: "Iterable[VerifiedPart]") -> None:
    """Print a line for each part.

    Raises:
        CheckpointError: parts are not as recorded; names them.
    """
    parts = []
    for part in found:
        parts.append(part)
        typer.secho(part.line(), fg="red" if part.problem else None)
    if wrong := [part.name for part in parts if part.problem]:
        raise CheckpointError(f"{folder}: {len(wrong)} of {len(parts)} parts differ: {', '.join(wrong)}")
    typer.echo(f"{folder}: {len(parts)} parts as recorded")


def _verified_parts(path: Path, on_hub: bool) -> "Iterator[VerifiedPart]":
    from zk0.publish.hub import HUB_TOKEN
    from zk0.publish.tokens import find_secret
    from zk0.publish.verify_files import verify_policy, verify_repository, verify_session
    from zk0.storage.session_folder import SessionFolder
    from zk0.storage.sha256_sums import SUMS_FILE

    here = SessionFolder(path)
    if here.ledger.is_file():
        yield from verify_session(here)
        if on_hub:
            yield verify_repository(here, find_secret(HUB_TOKEN))
    elif on_hub:
        raise SettingsError(f"{path}: --hub needs the folder of a session; its release.json names the repository")
    elif (path / SUMS_FILE).is_file():
        yield from verify_policy(path)
    else:
        raise SettingsError(f"{path}: neither ledger.jsonl nor {SUMS_FILE}; expected a session or a saved policy")

"""`zk0 audit`: audit the records of a session, or the model card of a policy, without tensors."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.cli.errors_to_exit_codes import errors_to_exit_codes
from flows.cli.verify_command import print_parts
from zk0.errors import SettingsError
from zk0.settings.home_folder import expand_home

if TYPE_CHECKING:
    from zk0.publish.audit_records import VerifiedPart
    from zk0.storage.session_folder import SessionFolder


def audit(
    folder: Annotated[Path, typer.Argument(help="Folder of a session, or of a saved policy with --ledger.")],
    ledger: Annotated[
        Path | None, typer.Option(help="With a saved policy: the ledger.jsonl that its model card belongs to.")
    ] = None,
    heads: Annotated[
        list[Path] | None,
        typer.Option(help="Heads that a node was shown (its scratch/heads/SESSION.jsonl); may be given several times."),
    ] = None,
    key: Annotated[
        str,
        typer.Option(help="Ledger key of the server, 64 hex digits (ledger_key of a kit); unset: that of its folder."),
    ] = "",
) -> None:
    """Audit ledger, signed heads, lists of updates, model cards and journals of a session against each other.

    Prints a line for each part. The exit code is 1 if one is not what another one states.
    """
    with errors_to_exit_codes():
        print_parts(folder, _audited_parts(folder.resolve(), ledger, heads or [], key))


def _audited_parts(path: Path, ledger: Path | None, heads: Sequence[Path], key: str) -> "Iterator[VerifiedPart]":
    from zk0.publish.audit_records import audit_card, audit_session
    from zk0.storage.session_folder import SessionFolder

    here, card = SessionFolder(path), path / "README.md"
    if here.ledger.is_file():
        if ledger is not None:
            raise SettingsError(f"{path}: has a ledger of its own; --ledger is for a saved policy")
        return audit_session(here, key or _server_key(here), heads)
    if ledger is None or not card.is_file():
        raise SettingsError(f"{path}: no ledger.jsonl; expected a session, or a saved policy (README.md) with --ledger")
    if not ledger.is_file():
        raise SettingsError(f"{ledger}: does not exist; expected the ledger.jsonl of the policy's session")
    return iter([audit_card(ledger, card, card.name)])


def _server_key(here: "SessionFolder") -> str:
    """Return the ledger key of the session's server; empty where its folder is not on this machine."""
    from zk0.audit.signing_key import SigningKey
    from zk0.errors import LedgerError

    if not here.session_toml.is_file():
        return ""
    server = expand_home(here.read_session().federation.server)
    try:
        return SigningKey(server / "ledger.key", server / "ledger.pub").public_hex()
    except LedgerError:
        return ""

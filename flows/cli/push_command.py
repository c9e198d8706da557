"""`zk0 push`: push a saved checkpoint of a session to the Hub by hand."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.cli.errors_to_exit_codes import errors_to_exit_codes
from zk0.errors import PublishError, SettingsError

if TYPE_CHECKING:
    from zk0.settings.session import Session
    from zk0.storage.session_folder import SessionFolder


def push_saved_checkpoint(
    folder: Annotated[Path, typer.Argument(help="Folder of a session, or one of its models/checkpoint_round_N.")],
    repo_id: Annotated[
        str | None, typer.Option(help="user/name on the Hub; unset: the session's publish.repo_id.", show_default=False)
    ] = None,
    public: Annotated[bool, typer.Option("--public", help="Make the repository public instead of private.")] = False,
    force: Annotated[
        str | None,
        typer.Option(
            metavar="REASON",
            help="Push although the release rule does not allow it; the reason is recorded.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Push a saved checkpoint to the Hub, if the session's release rule allows it.

    The rule: enough rounds, and significantly better than the model that the session started from. The token is
    HF_TOKEN, in the environment or in .env.
    """
    with errors_to_exit_codes():
        here, number = find_checkpoint(folder)
        session = settings_with_options(here, repo_id, public)
        from zk0.audit.ledger import Ledger
        from zk0.publish.hub import HUB_TOKEN
        from zk0.publish.push_checkpoint import push_checkpoint
        from zk0.publish.tokens import find_secret
        from zk0.rules.release import decide_release

        history = Ledger(here.ledger).read()
        if number >= len(history):
            raise SettingsError(f"{folder}: round {number} is not in {here.ledger}; expected a finished round")
        release = decide_release(session.publish, history, number)
        if release.outcome == "refused" and force is None:
            raise PublishError(f'not pushed: {release.reason}; --force "REASON" pushes it nonetheless')
        release = release.model_copy(update={"force_reason": force})
        pushed = push_checkpoint(here, history[number], release, find_secret(HUB_TOKEN))
        pushed.write(here.release)
        typer.echo(f"pushed {here.checkpoint(number)}\nto     {pushed.url} (commit {pushed.commit})")


def find_checkpoint(folder: Path) -> "tuple[SessionFolder, int]":
    """Return the session's folder, and the round of the named checkpoint or else of the session's policy.

    Raises:
        SettingsError: there is no saved checkpoint.
    """
    from zk0.rules.kept_policy import find_kept_policy
    from zk0.storage.session_folder import SessionFolder

    path = folder.resolve()
    number = path.name.removeprefix("checkpoint_round_")
    here = SessionFolder(path.parents[1] if path.parent.name == "models" else path)
    if here.ledger.is_file() and path == here.path:
        return here, find_kept_policy(here).round
    if not here.ledger.is_file() or not number.isdigit() or not path.is_dir():
        raise SettingsError(f"{folder}: no saved checkpoint; expected a session's folder or models/checkpoint_round_N")
    return here, int(number)


def settings_with_options(here: "SessionFolder", repo_id: str | None, public: bool) -> "Session":
    """Return the session's settings, with the options of the command line in their place."""
    from zk0.settings.loading import override_session

    options: dict[str, Any] = {}
    if repo_id is not None:
        options["publish.repo_id"] = repo_id
    if public:
        options["publish.private"] = False
    return override_session(here.read_session(), options, "zk0 push")

"""`zk0 push`: a saved checkpoint of a session goes to the Hub by hand."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.failure import one_clear_line
from zk0.errors import PublishError, SettingsError

if TYPE_CHECKING:
    from zk0.folder import SessionFolder
    from zk0.session import Session


def push(
    folder: Annotated[Path, typer.Argument(help="A session's folder, or one of its models/checkpoint_round_N.")],
    repo_id: Annotated[
        str | None, typer.Option(help="user/name on the Hub; unset: the session's publish.repo_id.", show_default=False)
    ] = None,
    public: Annotated[bool, typer.Option("--public", help="The repository is public, not private.")] = False,
    force: Annotated[
        str | None,
        typer.Option(metavar="REASON", help="Push against the rule; the reason is recorded.", show_default=False),
    ] = None,
) -> None:
    """Push a saved checkpoint to the Hub. The token is HF_TOKEN, in the environment or in .env.

    The rule is the session's: enough rounds, and surely better than the model it started from.
    """
    with one_clear_line():
        here, number = checkpoint_in(folder)
        session = asked_of(here, repo_id, public)
        from zk0.ledger import Ledger
        from zk0.publish.checkpoint import push_checkpoint
        from zk0.publish.hub import TOKEN
        from zk0.publish.secret import find_secret
        from zk0.release import decide_release

        history = Ledger(here.ledger).read()
        if number >= len(history):
            raise SettingsError(f"{folder}: round {number} is not in {here.ledger}; expected a finished round")
        release = decide_release(session.publish, history, number)
        if release.outcome == "refused" and force is None:
            raise PublishError(f'not pushed: {release.reason}; --force "REASON" pushes it nonetheless')
        release = release.model_copy(update={"forced": force})
        pushed = push_checkpoint(here, history[number], release, find_secret(TOKEN))
        pushed.keep(here.release)
        typer.echo(f"pushed {here.checkpoint(number)}\nto     {pushed.url} (commit {pushed.commit})")


def checkpoint_in(folder: Path) -> "tuple[SessionFolder, int]":
    """The session, and the round of the checkpoint that is meant: a session's last one, or the one that is named.

    Raises:
        SettingsError: there is none.
    """
    from zk0.folder import SessionFolder

    named = folder.resolve()
    if named.parent.name == "models":
        here, saved = SessionFolder(named.parents[1]), [named]
    else:
        here, saved = SessionFolder(named), [*named.glob("models/checkpoint_round_*")]
    rounds = [int(number) for f in saved if (number := f.name.removeprefix("checkpoint_round_")).isdigit()]
    if not rounds or not here.ledger.is_file():
        raise SettingsError(f"{folder}: no saved checkpoint; expected a session's folder or models/checkpoint_round_N")
    return here, max(rounds)


def asked_of(here: "SessionFolder", repo_id: str | None, public: bool) -> "Session":
    """The session's settings, with what is asked for on the command line."""
    from zk0.folder import toml_values
    from zk0.session import apply_overrides, parse_session

    asked: dict[str, Any] = {}
    if repo_id is not None:
        asked["publish.repo_id"] = repo_id
    if public:
        asked["publish.private"] = False
    return parse_session(apply_overrides(toml_values(here.session()), asked), "zk0 push")

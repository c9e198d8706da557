"""A session run from the command line: checked before a server is started for it, watched, shown when it is done."""

import os
from pathlib import Path
from typing import Any

import typer

from flows.announcement import forget_stale
from zk0.errors import SettingsError


def run_again(original: Path, overrides: dict[str, Any], quiet: bool) -> None:
    """Run a session a second time from its folder alone, and hold the weights of every round against the first.

    Args:
        original: folder of a session that has finished rounds.
        overrides: where things lie (`output_dir`, `cache_dir`) or how many work (`federation.workers`), nothing else.
        quiet: log lines instead of a progress bar.
    """
    from zk0.folder import SessionFolder
    from zk0.ledger import Ledger
    from zk0.reproduction import check_reproduced

    if other := sorted(overrides.keys() - {"output_dir", "cache_dir", "federation.workers"}):
        raise SettingsError(
            f"zk0 run --from: with --set {', '.join(other)} it would be another session; expected output_dir, "
            f"cache_dir or federation.workers, or another session: zk0 run {original / 'session.toml'}"
        )
    first = SessionFolder(original)
    history = Ledger(first.ledger).read()
    if not history:
        raise SettingsError(f"{original}: no round is finished there; expected the folder of a session")
    made = run_session(first.session_toml, overrides, None, quiet)
    typer.echo(check_reproduced(history, Ledger(SessionFolder(made).ledger).read(), str(original)))


def run_session(config: Path | None, overrides: dict[str, Any], resume: Path | None, quiet: bool) -> Path:
    """Run a session on this machine and show what came out of it; its folder.

    Args:
        config: a session file; None with `resume`.
        overrides: settings by dotted name that replace those of the file.
        resume: folder of a session to take up after its last finished round.
        quiet: log lines instead of a progress bar.
    """
    _check_before_starting(config, overrides, resume)
    settle_prefect()
    forget_stale(Path.cwd())
    from flows.stack import some_server
    from flows.terminal import interruptible, show_result, watching

    with interruptible(), watching(quiet) as tell, some_server(Path.cwd(), tell):
        from flows.federated_session import federated_session

        folder = federated_session(
            config=str(config) if config else "",
            overrides=overrides or None,
            resume=str(resume) if resume else None,
        )
    show_result(Path(folder))
    return Path(folder)


def parse_overrides(settings: list[str]) -> dict[str, Any]:
    """`name=value` pairs; values are read as TOML, and as plain text where they are not TOML.

    >>> parse_overrides(["rounds=5", "training.lr=3e-4", "name=mine", 'rollout.tasks=["lift-red"]'])
    {'rounds': 5, 'training.lr': 0.0003, 'name': 'mine', 'rollout.tasks': ['lift-red']}
    """
    import tomllib

    found: dict[str, Any] = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals or not name:
            raise SettingsError(f"--set {setting}: expected NAME=VALUE, such as --set rounds=5")
        try:
            found[name.strip()] = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            found[name.strip()] = value
    return found


def _check_before_starting(config: Path | None, overrides: dict[str, Any], resume: Path | None) -> None:
    """Wrong input is told at once, before a server is started for it."""
    from zk0.folder import SessionFolder
    from zk0.robot.locate import locate
    from zk0.session import load_session

    if resume is not None:
        if overrides:
            raise SettingsError("zk0 run --resume: a session is taken up with its own settings; leave --set out")
        SessionFolder(resume).session()
    elif config is not None:
        session = load_session(config, overrides).at(Path.cwd())
        SessionFolder(Path(session.output_dir)).check_writable()
        for uri in {*(c.dataset for c in session.members()), *(j.dataset for j in session.judges())}:
            if uri.startswith("local:"):
                locate(uri, Path(session.cache_dir))


def settle_prefect() -> None:
    """Prefect's own lines belong in the UI; the terminal shows the progress bar or ours."""
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")

"""Runs a session from the command line: checks the settings, starts Prefect if needed, prints the results."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from flows.prefect_local.prefect_toml import remove_stale_prefect_toml
from zk0.errors import SettingsError
from zk0.settings.home_folder import expand_home

if TYPE_CHECKING:
    from zk0.storage.session_folder import SessionFolder

_IMPORTED_WHILE_PREFECT_STARTS = ("flows.federated_session", "zk0.federation.open", "zk0.training.device")
"""The flow, Flower and PyTorch, which take less time than the server. LeRobot takes more; the first task needs none."""


def rerun_session(original: Path, overrides: dict[str, Any], moved: dict[str, str], quiet: bool) -> None:
    """Run a session again from its folder alone, and compare the weights of every round with the first run.

    Nothing of the second run is published or sent to a tracker.

    Args:
        original: folder of a session that has finished rounds.
        overrides: of settings that do not change the weights (`zk0.settings.moves.REPRODUCIBLE`).
        moved: folders that were moved since the first run: old place -> new place.
        quiet: print log lines instead of a progress bar.
    """
    from zk0.audit.ledger import Ledger
    from zk0.audit.reproduction import check_reproduced
    from zk0.settings.moves import NOT_PUBLISHED, REPRODUCIBLE
    from zk0.storage.session_folder import SessionFolder

    if other := sorted(overrides.keys() - set(REPRODUCIBLE)):
        raise SettingsError(
            f"zk0 run --from: a session is run again with its own {', '.join(other)}; expected only "
            f"{', '.join(REPRODUCIBLE)}, or a new session: zk0 run {original / 'session.toml'}"
        )
    first = SessionFolder(original)
    history = Ledger(first.ledger).read()
    if not history:
        raise SettingsError(f"{original}: no finished round; expected the folder of a session")
    if history[-1].buffered is not None:
        overrides = {**overrides, "buffer.order_of": str(original.resolve())}
    overrides = {**NOT_PUBLISHED, **overrides, **_same_nodes(first)}
    made = run_session(first.session_toml, overrides, None, quiet, moved)
    typer.echo(check_reproduced(history, Ledger(SessionFolder(made).ledger).read(), str(original)))


def _same_nodes(first: "SessionFolder") -> dict[str, Any]:
    """Return the setting by which a repeated session waits for the nodes of the first one; none on other engines.

    Raises:
        SettingsError: a node joined the first session while it ran: it would take part from the beginning.
    """
    from zk0.evaluation.session_setup import SessionSetup

    setup = SessionSetup.read_from(first.setup)
    if setup is None or first.read_session().federation.engine != "deployment":
        return {}
    if setup.late_joiners:
        late = ", ".join(f"{name} in round {number}" for name, number in setup.late_joiners.items())
        raise SettingsError(
            f"zk0 run --from {first.path}: nodes joined while the session ran ({late}); they would take part from the "
            "beginning, so that the weights would differ. Expected a session whose nodes were all there when it began"
        )
    return {"federation.nodes": [member.client for member in setup.members], "federation.min_nodes": len(setup.members)}


def run_session(
    config: Path | None,
    overrides: dict[str, Any],
    resume: Path | None,
    quiet: bool,
    moved: dict[str, str] | None = None,
) -> Path:
    """Run a session on this machine, print its results and return its folder.

    Args:
        config: a session file; None with `resume`.
        overrides: settings by dotted name that replace those of the file.
        resume: folder of a session to resume after its last finished round.
        quiet: print log lines instead of a progress bar.
        moved: folders that were moved since the session began: old place -> new place.
    """
    set_prefect_defaults()
    _check_before_starting(config, overrides, resume, moved or {})
    remove_stale_prefect_toml(Path.cwd())
    from flows.cli.terminal import print_session_result, resume_hint, session_progress
    from flows.prefect_local.temporary_server import configured_or_temporary_server

    with (
        resume_hint(),
        session_progress(quiet) as on_status,
        configured_or_temporary_server(Path.cwd(), on_status, _IMPORTED_WHILE_PREFECT_STARTS),
    ):
        from flows.federated_session import federated_session

        folder = federated_session(
            config=str(config) if config else "",
            overrides=overrides or None,
            resume=str(resume) if resume else None,
            moved=moved or None,
        )
    print_session_result(Path(folder))
    return Path(folder)


def parse_moves(moves: list[str]) -> dict[str, str]:
    """Parse `OLD=NEW` pairs of folders; the new one is made absolute.

    >>> parse_moves(["/data=/mnt/data"])
    {'/data': '/mnt/data'}
    """
    found = {}
    for move in moves:
        before, equals, now = move.partition("=")
        if not equals or not Path(before).is_absolute() or not now:
            raise SettingsError(f"--moved {move}: expected OLD=NEW, such as --moved /data/arms=/mnt/arms")
        found[before] = str(expand_home(now).resolve())
    return found


def parse_overrides(settings: list[str]) -> dict[str, Any]:
    """Parse `name=value` pairs; a value is read as TOML, or as plain text where it is not TOML.

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


def _check_before_starting(
    config: Path | None, overrides: dict[str, Any], resume: Path | None, moved: dict[str, str]
) -> None:
    """Raise an error for wrong input at once, before a server is started."""
    from flows.session_loading import check_session_inputs, load_session_to_run
    from zk0.aggregation.check_strategy import check_strategy
    from zk0.resources.session_needs import resource_lines
    from zk0.settings.moves import resumed_session, with_moved_folders
    from zk0.storage.session_folder import SessionFolder
    from zk0.storage.writable import check_writable

    if resume is not None:
        SessionFolder(resume).check_not_locked()
        session = resumed_session(SessionFolder(resume).read_session(), overrides, moved, str(resume), Path.cwd())
        check_strategy(session, str(resume))
        check_writable(resume.resolve(), "--resume")
        check_writable(Path(session.cache_dir), "cache_dir")
    elif config is not None:
        session = with_moved_folders(load_session_to_run(config, overrides), moved, str(config))
        check_session_inputs(session)
        for line in resource_lines(session):
            typer.echo(line, err=True)


def set_prefect_defaults() -> None:
    """Set defaults of environment variables: no log lines of Prefect in the terminal, no telemetry.

    Raises:
        SettingsError: Prefect's home cannot be read, or Prefect will start a server of its own, and its home cannot be
            written.
    """
    from zk0.storage.writable import check_readable, check_writable

    prefect_home = expand_home(os.environ.get("PREFECT_HOME", "~/.prefect"))
    has_server = "PREFECT_API_URL" in os.environ or Path("prefect.toml").is_file()
    (check_readable if has_server else check_writable)(prefect_home, "PREFECT_HOME")
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")

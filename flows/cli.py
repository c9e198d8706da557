"""`zk0`, the front door. It opens quickly: whatever is heavy is imported by the command that needs it."""

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from flows.announcement import forget_stale
from flows.cli_bench import bench
from flows.cli_data import data_app
from flows.cli_push import push
from flows.cli_rollout import rollout
from flows.cli_ui import ui
from flows.failure import one_clear_line
from zk0.errors import SettingsError

app = typer.Typer(
    name="zk0",
    help="Federated training of SmolVLA robot policies on LeRobot data that stays where it is.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


app.add_typer(data_app)
app.command()(ui)
app.command()(push)
app.command()(rollout)
app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "allow_interspersed_args": False}
)(bench)


@app.callback()
def zk0() -> None:
    """Federated training of SmolVLA robot policies on LeRobot data that stays where it is."""


@app.command()
def run(
    config: Annotated[
        Path | None, typer.Argument(help="A session file, such as deployments/sessions/demo.toml.", show_default=False)
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Replace a setting: --set rounds=5 --set training.lr=3e-4."),
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(help="Take up the session in this folder after its last finished round.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bar; log lines instead.")] = False,
) -> None:
    """Run a federated session on this machine and show what came out of it."""
    with one_clear_line():
        overrides = parse_overrides(settings or [])
        if (config is None) == (resume is None):
            raise SettingsError("zk0 run: give either a session file or --resume FOLDER")
        _check_before_starting(config, overrides, resume)
        _settle_prefect()
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
    from zk0.robot.dataset import locate
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


def _settle_prefect() -> None:
    """Prefect's own lines belong in the UI; the terminal shows the progress bar or ours."""
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")


if __name__ == "__main__":
    app()

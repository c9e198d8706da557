"""`zk0`, the front door. It opens quickly: whatever is heavy is imported by the command that needs it."""

from pathlib import Path
from typing import Annotated

import typer

from flows.cli_bench import bench
from flows.cli_compare import compare
from flows.cli_data import data_app
from flows.cli_push import push
from flows.cli_rollout import rollout
from flows.cli_ui import ui
from flows.cli_versus import versus
from flows.cli_videos import videos_app
from flows.failure import one_clear_line
from flows.session_run import parse_overrides, run_again, run_session
from zk0.errors import SettingsError

app = typer.Typer(
    name="zk0",
    help="Federated training of SmolVLA robot policies on LeRobot data that stays where it is.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


app.add_typer(data_app)
app.add_typer(videos_app)
app.command()(ui)
app.command()(push)
app.command()(rollout)
app.command()(compare)
app.command()(versus)
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
    again: Annotated[
        Path | None,
        typer.Option("--from", help="Run the session in this folder a second time: the weights must be the same."),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bar; log lines instead.")] = False,
) -> None:
    """Run a federated session on this machine and show what came out of it."""
    with one_clear_line():
        overrides = parse_overrides(settings or [])
        if sum(one is not None for one in (config, resume, again)) != 1:
            raise SettingsError("zk0 run: give one of a session file, --resume FOLDER and --from FOLDER")
        if again is not None:
            run_again(again, overrides, quiet)
        else:
            run_session(config, overrides, resume, quiet)


if __name__ == "__main__":
    app()

"""The command line `zk0`. It starts quickly: heavy libraries are imported by the commands that need them."""

from pathlib import Path
from typing import Annotated

import typer

from flows.cli.arm_command import arm_app
from flows.cli.audit_command import audit
from flows.cli.bench_command import bench
from flows.cli.command_group import command_group
from flows.cli.compare_command import compare_sessions
from flows.cli.data_command import data_app
from flows.cli.errors_to_exit_codes import errors_to_exit_codes
from flows.cli.init_command import init
from flows.cli.plan_command import plan
from flows.cli.push_command import push_saved_checkpoint
from flows.cli.rollout_command import rollout
from flows.cli.serve_alias import serve_with_bot
from flows.cli.session_run import parse_moves, parse_overrides, rerun_session, run_session
from flows.cli.tune_command import tune
from flows.cli.ui_command import ui
from flows.cli.verify_command import verify
from flows.cli.version_option import VersionOption
from flows.cli.versus_command import versus
from flows.cli.videos_command import videos_app
from flows.proxies import exempt_loopback_from_proxies
from zk0.errors import SettingsError

zk0_app = command_group(
    "zk0",
    "Federated training of robot policies on LeRobot datasets that stay on their machines.",
    context_settings={"help_option_names": ["-h", "--help"]},
)


zk0_app.add_typer(data_app)
zk0_app.add_typer(videos_app)
zk0_app.add_typer(arm_app)
zk0_app.command("init")(init)
zk0_app.command("ui")(ui)
zk0_app.command("plan")(plan)
zk0_app.command("push")(push_saved_checkpoint)
zk0_app.command("verify")(verify)
zk0_app.command("audit")(audit)
zk0_app.command("rollout")(rollout)
zk0_app.command("compare")(compare_sessions)
zk0_app.command("versus")(versus)
zk0_app.command("tune")(tune)
zk0_app.command(
    "bench",
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "allow_interspersed_args": False},
)(bench)

zk0_app.command(
    "serve",
    add_help_option=False,  # --help is that of `zk0bot serve`
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "allow_interspersed_args": False},
)(serve_with_bot)


@zk0_app.callback()
def zk0(version: VersionOption = False) -> None:
    """Federated training of robot policies on LeRobot datasets that stay on their machines."""
    exempt_loopback_from_proxies()


@zk0_app.command("run")
def zk0_run(
    config: Annotated[
        Path | None,
        typer.Argument(help="Session file, or the name of one of zk0: demo.", show_default=False),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Replace a setting: --set rounds=5 --set training.lr=3e-4."),
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(help="Resume the session in this folder after its last finished round.")
    ] = None,
    again: Annotated[
        Path | None,
        typer.Option("--from", help="Re-run the session in this folder and compare the weights of every round."),
    ] = None,
    moved: Annotated[
        list[str] | None,
        typer.Option(metavar="OLD=NEW", help="With --resume or --from: a folder of datasets or caches that was moved."),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print log lines instead of a progress bar.")] = False,
    folder_file: Annotated[
        Path | None, typer.Option(hidden=True, help="File that the path of the session's folder is written to.")
    ] = None,
) -> None:
    """Run a federated session on this machine and print its results."""
    with errors_to_exit_codes():
        overrides = parse_overrides(settings or [])
        if sum(given is not None for given in (config, resume, again)) != 1:
            raise SettingsError("zk0 run: give one of a session file, --resume FOLDER and --from FOLDER")
        places = parse_moves(moved or [])
        if again is not None:
            rerun_session(again, overrides, places, quiet)
            return
        folder = run_session(config, overrides, resume, quiet, places)
        if folder_file is not None:
            folder_file.write_text(str(folder), encoding="utf-8")


if __name__ == "__main__":
    zk0_app()

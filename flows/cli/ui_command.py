"""`zk0 ui`: run a Prefect server with its UI, a worker and the deployments on this machine, until Ctrl-C."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from flows.cli.errors_to_exit_codes import errors_to_exit_codes
from flows.cli.interrupts import interrupted_by
from flows.cli.program_name import program_name
from flows.prefect_local.local_prefect import LocalPrefect, local_prefect
from flows.prefect_local.ports import DEFAULT_PORT
from flows.prefect_local.prefect_server import SESSION_DEPLOYMENT
from flows.prefect_local.prefect_toml import prefect_toml_written
from zk0.settings.home_folder import expand_home


def ui(
    port: Annotated[
        int | None, typer.Option(help=f"Port of the server; unset: {DEFAULT_PORT}, or a free one.", show_default=False)
    ] = None,
    home: Annotated[
        Path | None,
        typer.Option(help="Folder of the server's database and logs; unset: Prefect's own home."),
    ] = None,
) -> None:
    """Start a Prefect server with its UI and a worker, and register the deployments; runs until Ctrl-C."""
    console = Console(highlight=False, soft_wrap=True)
    root = Path.cwd()
    with (
        errors_to_exit_codes(),
        _until_stopped(),
        local_prefect(root, _chosen_home(home), port, console.print) as running,
    ):
        if home is not None:
            _print_addresses(console, running, found_by_prefect=False)
            _watch_processes(running)
        with prefect_toml_written(root, running.server.api_url, running.server.api_key) as written:
            _print_addresses(console, running, found_by_prefect=written)
            _watch_processes(running)


def _chosen_home(home: Path | None) -> Path:
    return expand_home(home or os.environ.get("PREFECT_HOME", "~/.prefect")).resolve()


@contextmanager
def _until_stopped() -> Iterator[None]:
    """End the block in order on Ctrl-C, SIGTERM and a closed terminal, which are the normal ways to end it."""
    try:  # SIGINT too: started with & from a script it would be ignored
        with interrupted_by(signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            yield
    except KeyboardInterrupt:
        return


def _print_addresses(console: Console, running: LocalPrefect, found_by_prefect: bool) -> None:
    prefect = program_name("prefect")
    console.print()
    console.print(f"UI            {running.server.sign_in_url}", style="bold")
    console.print(f"deployment    {running.server.deployment_url(SESSION_DEPLOYMENT)}")
    console.print(f"logs          {running.logs}")
    console.print("\nTo start a session: the deployment's Run button, or in another terminal, in this folder:\n")
    if not found_by_prefect:
        console.print(f"  export PREFECT_API_URL={running.server.api_url}")
        console.print(f"  export PREFECT_API_AUTH_STRING=$(cat {running.logs / 'api.key'})")
    console.print(f"  {prefect} deployment run {SESSION_DEPLOYMENT} --watch")
    console.print("\nCtrl-C stops the server, the worker and all running sessions.")


def _watch_processes(running: LocalPrefect) -> None:
    while True:
        running.check_running()
        time.sleep(0.5)

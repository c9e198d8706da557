"""`zk0 ui`: Prefect with its UI on this machine, until Ctrl-C."""

import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer
from rich.console import Console

from flows.announcement import announced
from flows.failure import one_clear_line
from flows.stack import USUAL_PORT, Stack, local_stack

DEPLOYMENT = "zk0/federated-session"


def ui(
    port: Annotated[
        int | None, typer.Option(help=f"Port of the server; unset: {USUAL_PORT}, or a free one.", show_default=False)
    ] = None,
    home: Annotated[
        Path | None,
        typer.Option(help="Keep this server apart, with its data in this folder; unset: Prefect's own home."),
    ] = None,
) -> None:
    """Start a Prefect server with its UI, register the deployments and run what is asked of them, until Ctrl-C."""
    console = Console(highlight=False, soft_wrap=True)
    root = Path.cwd()
    usual = Path(os.environ.get("PREFECT_HOME", "~/.prefect")).expanduser()
    with one_clear_line(), _until_stopped(), local_stack(root, (home or usual).resolve(), port, console.print) as stack:
        if home is not None:
            _show(console, stack, announced=False)
            _stay(stack)
        with announced(root, stack.server.api_url) as found:
            _show(console, stack, announced=found)
            _stay(stack)


@contextmanager
def _until_stopped() -> Iterator[None]:
    """Ctrl-C, SIGTERM and a closed terminal all end the block in order; that is how it is meant to end."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, stop)  # SIGINT too: started with & from a script it would be ignored
    try:
        yield
    except KeyboardInterrupt:
        return


def _show(console: Console, stack: Stack, announced: bool) -> None:
    prefect = "prefect" if shutil.which("prefect") else _shown(Path(sys.executable).with_name("prefect"))
    console.print()
    console.print(f"UI            {stack.server.url}", style="bold")
    console.print(f"deployment    {stack.server.deployment_url(DEPLOYMENT)}")
    console.print(f"logs          {stack.logs}")
    console.print("\nTo start a session: the deployment's Run button, or in another terminal, in this folder:\n")
    if not announced:
        console.print(f"  export PREFECT_API_URL={stack.server.api_url}")
    console.print(f"  {prefect} deployment run {DEPLOYMENT} --watch")
    console.print("\nCtrl-C stops server, worker and whatever runs.")


def _shown(path: Path) -> str:
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)


def _stay(stack: Stack) -> None:
    while True:
        stack.check()
        time.sleep(0.5)

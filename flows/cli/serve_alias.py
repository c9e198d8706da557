"""`zk0 serve`: the same command as `zk0bot serve`, under the name that people look for first."""

import os
import sys

import typer


def serve_with_bot(context: typer.Context) -> None:
    """Run a server that is always on: the same command as `zk0bot serve`, with the same arguments."""
    os.execv(sys.executable, [sys.executable, "-m", "flows.bot.main", "serve", *context.args])

"""How a command ends when something is wrong."""

from collections.abc import Iterator
from contextlib import contextmanager

import typer

from zk0.errors import SettingsError, Zk0Error


@contextmanager
def one_clear_line() -> Iterator[None]:
    """Our own errors end the program with one line on stderr: 2 for wrong settings, 1 for the rest.

    Anything else is a fault of ours and shows its trace.
    """
    try:
        yield
    except Zk0Error as e:
        typer.secho(f"zk0: {e}", fg="red", err=True)
        raise typer.Exit(2 if isinstance(e, SettingsError) else 1) from None

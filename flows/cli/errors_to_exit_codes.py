"""How a command ends when an error of zk0 is raised: one line on stderr and an exit code."""

from collections.abc import Iterator
from contextlib import contextmanager

import typer

from zk0.errors import SettingsError, Zk0Error


@contextmanager
def errors_to_exit_codes() -> Iterator[None]:
    """Print a Zk0Error as one line on stderr and exit: with 2 for wrong settings, with 1 for any other.

    Any other exception is a bug and shows its traceback.
    """
    try:
        yield
    except Zk0Error as e:
        typer.secho(f"zk0: {e}", fg="red", err=True)
        raise typer.Exit(2 if isinstance(e, SettingsError) else 1) from None

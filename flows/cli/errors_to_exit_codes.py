"""How a command ends when an error of zk0 is raised: one line on stderr and an exit code."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import typer

from zk0.errors import SettingsError, Zk0Error


def check_home() -> None:
    """Check that the user has a home folder: zk0 and the libraries that it calls keep settings and caches there.

    Raises:
        SettingsError: HOME is empty or relative; or it is not set, and the user is unknown to the system, as in a
            container with a uid of its own.
    """
    home = os.environ.get("HOME")
    if home is not None and not Path(home).is_absolute():
        raise SettingsError(f"HOME is {home!r}, expected the path of a folder from the root; set it, or unset it")
    try:
        Path.home()
    except RuntimeError as e:
        raise SettingsError(
            f"HOME is not set, and user {os.getuid()} has no entry in the user database; "
            "set HOME to a folder that can be written"
        ) from e


@contextmanager
def errors_to_exit_codes() -> Iterator[None]:
    """Print a Zk0Error as one line on stderr and exit: with 2 for wrong settings, with 1 for any other.

    Any other exception is a bug and shows its traceback.
    """
    try:
        check_home()
        yield
    except Zk0Error as e:
        typer.secho(f"zk0: {e}", fg="red", err=True)
        raise typer.Exit(2 if isinstance(e, SettingsError) else 1) from None

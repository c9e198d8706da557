"""The name or path by which a user can start a program of this environment."""

import shlex
import shutil
import sys
from pathlib import Path


def program_name(name: str = "zk0", *, from_here: bool = True) -> str:
    """Return what to type to start a program: its name if PATH leads to it, else its path, quoted for a shell.

    Args:
        name: of the program.
        from_here: the path may be relative where it is below the working directory, as `.venv/bin/zk0` in a clone.
    """
    started = Path(sys.argv[0])
    own = started if started.name == name else Path(sys.executable).with_name(name)
    found = shutil.which(name)
    if not own.is_file() or (found is not None and Path(found).samefile(own)):
        return name
    path = str(own.absolute())
    if from_here and "/" not in (path := short_path(own.absolute())):
        path = f"./{path}"
    return shlex.quote(path)


def short_path(path: Path) -> str:
    """Return the path relative to the working directory where it is below it."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)

"""`zk0 init`: a folder with session files and deployments to edit."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from flows.cli.errors_to_exit_codes import errors_to_exit_codes
from flows.cli.program_name import program_name


def init(folder: Annotated[Path, typer.Argument(help="Folder to write into; it is created if needed.")]) -> None:
    """Write the session files, pools and deployments of zk0 into a folder, to edit and run them there."""
    with errors_to_exit_codes():
        from flows.packaged_files import write_project

        for path in write_project(folder):
            typer.echo(path)
        zk0 = program_name(from_here=False)
        typer.echo(f"\nnext: cd {shlex.quote(str(folder))} && {zk0} run deployments/sessions/demo.toml")

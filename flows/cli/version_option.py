"""The option `--version` of the command lines."""

from typing import Annotated

import typer


def _print_version(wanted: bool) -> None:
    if wanted:
        from zk0 import __version__

        typer.echo(f"zk0 {__version__}")
        raise typer.Exit


VersionOption = Annotated[
    bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version and exit.")
]

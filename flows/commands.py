"""Groups of commands whose `--help` says what every argument is for.

typer 0.20, the newest that Flower takes, sets the help of an argument before click's own constructor does, and since
click 8.5 that one sets it to nothing.
"""

import click
from typer.core import TyperArgument, TyperGroup
from typer.utils import get_params_from_function


class Commands(TyperGroup):
    """A group; `typer.Typer(cls=Commands)`."""

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name, its arguments with their help."""
        found = super().get_command(ctx, cmd_name)
        if found is not None and found.callback is not None:
            asked = get_params_from_function(found.callback)
            for argument in found.params:
                if isinstance(argument, TyperArgument):
                    argument.help = asked[str(argument.name)].default.help
        return found

"""A group of commands, or a whole command line, with the behavior that all of ours share."""

from typing import Any

import typer


def command_group(name: str, summary: str, **more: Any) -> typer.Typer:
    """Return a group without commands, which shows its help where no command is given.

    Args:
        name: of the group, as it is typed.
        summary: first line of its help.
        more: other arguments of `typer.Typer`.
    """
    return typer.Typer(
        suggest_commands=False,  # click suggests, too
        name=name,
        help=summary,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        **more,
    )

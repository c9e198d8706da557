"""`--help` of every command says what it does, and what each argument and option is for."""

from collections.abc import Iterator

import click
import pytest
from typer.main import get_command
from typer.testing import CliRunner

from flows import bot, cli


def commands(group: click.Group, name: str) -> Iterator[tuple[str, click.Command]]:
    context = click.Context(group, info_name=name)
    for one in group.list_commands(context):
        found = group.get_command(context, one)
        assert found is not None
        yield f"{name} {one}", found
        if isinstance(found, click.Group):
            yield from commands(found, f"{name} {one}")


ALL = [*commands(get_command(cli.app), "zk0"), *commands(get_command(bot.app), "zk0bot")]


@pytest.mark.parametrize(("name", "command"), ALL, ids=[name for name, _ in ALL])
def test_nothing_is_left_without_a_word(name: str, command: click.Command) -> None:
    assert command.help
    assert [p.name for p in command.params if not getattr(p, "help", None)] == []


def test_every_command_is_walked_and_its_words_are_shown() -> None:
    assert {"zk0 run", "zk0 bench", "zk0 data check", "zk0 videos analyse", "zk0bot server enroll"} <= dict(ALL).keys()
    wide = {"COLUMNS": "200", "TERMINAL_WIDTH": "200"}
    said = CliRunner().invoke(cli.app, ["rollout", "--help"], env=wide).output
    assert "A policy folder saved by lerobot or zk0, or a name on the Hub." in said
    assert "[required]" in said

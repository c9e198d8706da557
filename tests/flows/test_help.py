"""`--help` of every command describes the command, and each of its arguments and options."""

import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import typer
from typer.main import get_command
from typer.testing import CliRunner

import zk0
from flows.bot import main as bot
from flows.cli import main as cli


def commands(group: click.Group, name: str) -> Iterator[tuple[str, click.Command]]:
    context = click.Context(group, info_name=name)
    for one in group.list_commands(context):
        found = group.get_command(context, one)
        assert found is not None
        yield f"{name} {one}", found
        if isinstance(found, click.Group):
            yield from commands(found, f"{name} {one}")


ALL = [*commands(get_command(cli.zk0_app), "zk0"), *commands(get_command(bot.zk0bot_app), "zk0bot")]


@pytest.mark.parametrize(("name", "command"), ALL, ids=[name for name, _ in ALL])
def test_every_parameter_has_a_help_text(name: str, command: click.Command) -> None:
    assert command.help
    assert [p.name for p in command.params if not getattr(p, "help", None)] == []


def test_every_command_is_checked_and_help_texts_are_shown() -> None:
    assert {"zk0 run", "zk0 bench", "zk0 data check", "zk0 videos analyse", "zk0bot server enroll"} <= dict(ALL).keys()
    wide = {"COLUMNS": "200", "TERMINAL_WIDTH": "200"}
    output = CliRunner().invoke(cli.zk0_app, ["rollout", "--help"], env=wide).output
    assert "Folder of a policy or of a session, a name on the Hub, or base." in output
    assert "[required]" in output


@pytest.mark.parametrize("app", [cli.zk0_app, bot.zk0bot_app], ids=["zk0", "zk0bot"])
def test_version(app: typer.Typer) -> None:
    declared = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))
    done = CliRunner().invoke(app, ["--version"])
    assert (done.exit_code, done.output) == (0, f"zk0 {declared['project']['version']}\n")
    assert zk0.__version__ == declared["project"]["version"]


@pytest.mark.parametrize(("arguments", "meant"), [(["runn"], "'run'"), (["data", "chek"], "'check'")])
def test_a_mistyped_command_has_one_suggestion(arguments: list[str], meant: str) -> None:
    done = CliRunner().invoke(cli.zk0_app, arguments)
    assert done.exit_code == 2
    assert done.output.count("Did you mean") == 1
    assert meant in done.output


def documented_commands() -> Iterator[tuple[str, list[str]]]:
    """Each command line of zk0 and zk0bot in the code blocks of the two pages that owners and operators follow."""
    for name in ("robot.md", "running.md"):
        text = (Path(__file__).parents[2] / "docs" / name).read_text(encoding="utf-8").replace("\\\n", " ")
        for block in re.findall(r"^```\w*\n(.*?)^```", text, re.M | re.S):
            for line in block.splitlines():
                if match := re.match(r"(?:\.venv/bin/)?(zk0|zk0bot) ", line):
                    yield f"{name}: {line}", [match[1], *shlex.split(line, comments=True)[1:]]


@pytest.mark.parametrize(("line", "words"), [*documented_commands()], ids=lambda value: str(value)[:70])
def test_documented_commands_have_the_options_that_they_name(line: str, words: list[str]) -> None:
    """Parsed as the shell would hand them over; nothing is run."""
    program, *rest = words
    command = get_command({"zk0": cli.zk0_app, "zk0bot": bot.zk0bot_app}[program])
    while isinstance(command, click.Group):
        name, *rest = rest
        found = command.get_command(click.Context(command), name)
        assert found is not None, line
        command = found
    command.make_context(program, rest)

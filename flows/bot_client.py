"""`zk0bot client`: the side of a federation where data stays."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.bot_server import HOME, Follow, Foreground, Home, Lines
from flows.failure import one_clear_line
from flows.kept_view import show_log, show_state

if TYPE_CHECKING:
    from zk0.federation.node import NodeFolder
    from zk0.session import ClientSettings

client_app = typer.Typer(
    name="client",
    help="Take part in a federation with a data set of this machine.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def folder_of(home: Path) -> "NodeFolder":
    """The node's folder of a home."""
    from zk0.federation.node import NodeFolder

    return NodeFolder((home.expanduser() / "client").resolve())


@client_app.command()
def start(
    dataset: Annotated[str, typer.Argument(help="hf:user/name, user/name, local:/path or sim:task.")],
    kit: Annotated[Path | None, typer.Option(help="From the server's operator; needed once.")] = None,
    rename: Annotated[
        list[str] | None,
        typer.Option("--rename", metavar="OLD=NEW", help="A feature key under the name of the federation's contract."),
    ] = None,
    cache: Annotated[Path, typer.Option("--cache", help="Where downloads and features are kept.")] = Path(
        "~/.cache/zk0"
    ),
    hours: Annotated[
        str | None, typer.Option(help="When it may work, by this machine's clock: 22:00-06:00; unset: always.")
    ] = None,
    foreground: Foreground = False,
    home: Home = HOME,
) -> None:
    """Start this machine's node: from now on it answers the server's sessions with this data set."""
    with one_clear_line():
        from zk0.federation.hours import Hours
        from zk0.federation.kit import Kit

        span = Hours.parse(hours) if hours else None
        node = folder_of(home)
        if kit is not None:
            node.take(Kit.read(kit))
        settings = _settings(node.kit().name, dataset, rename or [], cache)
        if foreground:
            node.prepare(settings, cache.expanduser().resolve(), span)
            os.execv(sys.executable, [sys.executable, "-m", "zk0.federation.keeper", str(node.path)])
        node.start(settings, cache.expanduser().resolve(), hours=span)
        typer.echo(f"{settings.name} answers {node.kit().server} with {settings.dataset}")
        if span is not None:
            typer.echo(f"its hours are {span}; outside them nothing of it runs")
        typer.echo("what it does: zk0bot client status, zk0bot client log")


@client_app.command()
def stop(home: Home = HOME) -> None:
    """Stop it and all its processes; finished work is kept."""
    with one_clear_line():
        typer.echo("stopped" if folder_of(home).stop() else "was not running")


@client_app.command()
def status(home: Home = HOME) -> None:
    """Its processes."""
    with one_clear_line():
        show_client(folder_of(home))


@client_app.command()
def log(
    name: Annotated[str, typer.Argument(help="client, supernode, agent, worker-0 or keeper.")] = "client",
    lines: Lines = 50,
    follow: Follow = False,
    home: Home = HOME,
) -> None:
    """What it said; `client` is what it trained and sent."""
    with one_clear_line():
        node = folder_of(home)
        show_log([*node.kept.logs(), *node.scratch.glob("client.log")], name, lines, follow)


@client_app.command()
def audit(
    folder: Annotated[
        Path | None, typer.Option(help="A client's folder in a session on this machine; unset: this machine's node.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON line a message, with all that it said.")] = False,
    home: Home = HOME,
) -> None:
    """Everything that left this machine: chain, signatures and receipts checked."""
    with one_clear_line():
        from flows.audit_view import show_audit
        from zk0.federation.receipts import audit as audited

        found = audited(folder or folder_of(home).scratch)
        if as_json:
            for one in found:
                typer.echo(one.model_dump_json())
            return
        show_audit(found)


def show_client(node: "NodeFolder") -> None:
    """Its processes."""
    kit, runs = node.kit(), node.kept.state() is not None
    typer.secho(f"client   {kit.name}: {'running' if runs else 'not running'}, its server is {kit.server}", bold=True)
    typer.echo(f"  key        {kit.fingerprint()}")
    show_state(node.kept)


def _settings(name: str, dataset: str, renames: list[str], cache: Path) -> "ClientSettings":
    """Checked before anything is started for it."""
    from flows.cli_data import parse_renames
    from zk0.robot.locate import locate
    from zk0.session import ClientSettings

    scheme, _, rest = dataset.partition(":")
    if scheme == "local":
        dataset = f"local:{Path(rest).expanduser().resolve()}"
        locate(dataset, cache.expanduser())
    return ClientSettings(name=name, dataset=dataset, rename_map=parse_renames(renames))

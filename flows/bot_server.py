"""`zk0bot server`: the side of a federation that nodes come to."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.failure import one_clear_line
from flows.kept_view import show_log, show_state

if TYPE_CHECKING:
    from zk0.federation.server import ServerFolder

server_app = typer.Typer(
    name="server",
    help="Make, start and stop the server of a federation, and say who may take part.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

HOME = Path("~/.zk0")
Home = Annotated[Path, typer.Option("--home", envvar="ZK0_HOME", help="Where servers and nodes keep their folders.")]
Lines = Annotated[int, typer.Option("--lines", "-n", min=0, help="How much of its end.")]
Follow = Annotated[bool, typer.Option("--follow", "-f", help="And what comes, until Ctrl-C.")]
Foreground = Annotated[bool, typer.Option("--foreground", help="Stay, as systemd and containers want it.")]


def folder_of(home: Path) -> "ServerFolder":
    """The server's folder of a home."""
    from zk0.federation.server import ServerFolder

    return ServerFolder((home.expanduser() / "server").resolve())


@server_app.command()
def init(
    host: Annotated[
        list[str] | None,
        typer.Option(
            envvar="ZK0_SERVER_IP",
            help="A name or address under which nodes reach this machine; unset: none but itself does.",
        ),
    ] = None,
    port: Annotated[int, typer.Option(min=1, max=65535, help="The one port that is open to the network.")] = 9092,
    bind: Annotated[
        str | None, typer.Option(help="Address that the port listens on; unset: all, or loopback without --host.")
    ] = None,
    public: Annotated[
        str, typer.Option(help="HOST:PORT that kits name, where it is not the first host and the port.")
    ] = "",
    in_memory: Annotated[
        bool, typer.Option("--in-memory", help="Keep no runs and messages on disk: a restart forgets them.")
    ] = False,
    home: Home = HOME,
) -> None:
    """Make a private authority, the server's certificate and its settings; called again, new settings alone."""
    with one_clear_line():
        from zk0.federation.server import ServerSettings

        server = folder_of(home)
        hosts = tuple(host or ("127.0.0.1",))
        listen = bind or ("0.0.0.0" if host else "127.0.0.1")
        settings = ServerSettings(hosts=hosts, public=public, port=port, bind=listen, in_memory=in_memory)
        server.init(settings)
        typer.echo(f"server   {server.path}")
        typer.echo(f"nodes    come to {settings.address}")
        typer.echo("next     zk0bot server enroll NAME, then zk0bot server start")


@server_app.command()
def enroll(
    name: Annotated[str, typer.Argument(help="What the node will be called in every session.")],
    out: Annotated[Path | None, typer.Option(help="File for the kit; unset: NAME.kit here.")] = None,
    home: Home = HOME,
) -> None:
    """Make a kit for a node: one file with all that its operator needs. Hand it over safely: it is the node's key."""
    with one_clear_line():
        server = folder_of(home)
        target = out or Path(f"{Path(name).name}.kit")
        kit = server.enroll(name)
        kit.write(target)
        typer.echo(f"kit      {target}")
        typer.echo(f"key      {server.fingerprint(name)}")
        typer.echo(f"node     zk0bot client start DATASET --kit {target.name}")


@server_app.command()
def revoke(name: Annotated[str, typer.Argument(help="A node that is enrolled.")], home: Home = HOME) -> None:
    """Take a node off the list; from the next second on it is a stranger."""
    with one_clear_line():
        folder_of(home).revoke(name)
        typer.echo(f"{name} is no longer enrolled")


@server_app.command()
def start(foreground: Foreground = False, home: Home = HOME) -> None:
    """Start it, and wait until nodes can come."""
    with one_clear_line():
        server = folder_of(home)
        settings = server.settings()
        if foreground:
            server.prepare(settings)
            os.execv(sys.executable, [sys.executable, "-m", "zk0.federation.keeper", str(server.path)])
        server.start()
        typer.echo(f"nodes may come to {settings.address}")


@server_app.command()
def stop(home: Home = HOME) -> None:
    """Stop it and all its processes."""
    with one_clear_line():
        typer.echo("stopped" if folder_of(home).stop() else "was not running")


@server_app.command()
def status(home: Home = HOME) -> None:
    """Its processes, and its nodes."""
    with one_clear_line():
        show_server(folder_of(home))


@server_app.command()
def log(
    name: Annotated[str, typer.Argument(help="superlink, gateway or keeper.")] = "gateway",
    lines: Lines = 50,
    follow: Follow = False,
    home: Home = HOME,
) -> None:
    """What one of its processes said."""
    with one_clear_line():
        show_log(folder_of(home).kept.logs(), name, lines, follow)


@server_app.command()
def audit(
    as_json: Annotated[bool, typer.Option("--json", help="One JSON line an answer, with all that is known.")] = False,
    home: Home = HOME,
) -> None:
    """Everything that this server was answered, taken or refused: chain and signatures checked."""
    with one_clear_line():
        from flows.audit_view import show_accepted
        from zk0.federation.accepted import ACCEPTED
        from zk0.journal import AcceptedJournal

        server = folder_of(home)
        server.settings()
        journal = AcceptedJournal(server.path / ACCEPTED)
        found = journal.read()
        if as_json:
            for one in found:
                typer.echo(one.model_dump_json())
        elif not found:
            typer.echo(f"{journal.path}: no session has asked anybody yet")
        else:
            show_accepted(found, journal.public_key.read_text(encoding="ascii"))


def show_server(server: "ServerFolder") -> None:
    """Its processes, and its nodes."""
    settings, runs = server.settings(), server.kept.state() is not None
    runs_or_not = "running" if runs else "not running"
    typer.secho(f"server   {runs_or_not}, nodes come to {settings.address}", bold=True)
    show_state(server.kept)
    for node in server.nodes():
        since = f" since {node.since[:19]} UTC" if node.since else ""
        typer.echo(f"  node {node.name:<20} {node.status}{since}  {node.fingerprint}")

"""`zk0bot server`: commands of the machine that runs the server of a federation."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from flows.bot.process_view import print_log, print_processes
from flows.cli.command_group import command_group
from flows.cli.errors_to_exit_codes import errors_to_exit_codes
from flows.cli.program_name import program_name
from zk0.settings.home_folder import expand_home
from zk0.storage.writable import check_readable, check_writable

if TYPE_CHECKING:
    from zk0.federation.network.server import ServerFolder

server_app = command_group(
    "server",
    "Set up, start and stop the server of a federation; enroll and revoke nodes.",
)

DEFAULT_HOME = Path("~/.zk0")
HomeOption = Annotated[
    Path, typer.Option("--home", envvar="ZK0_HOME", help="Folder of this machine's server and node.")
]
LinesOption = Annotated[int, typer.Option("--lines", "-n", min=0, help="Number of lines from the end of the log.")]
FollowOption = Annotated[bool, typer.Option("--follow", "-f", help="Print new lines too, until Ctrl-C.")]
ForegroundOption = Annotated[
    bool, typer.Option("--foreground", help="Run in the foreground, as systemd and containers need it.")
]


def server_folder(home: Path) -> "ServerFolder":
    """Return the folder of the server in a home.

    Raises:
        SettingsError: this user may not read it.
    """
    from zk0.federation.network.server import ServerFolder

    server = ServerFolder((expand_home(home) / "server").resolve())
    check_readable(server.path, "--home")
    return server


def writable_server_folder(home: Path) -> "ServerFolder":
    """Return the folder of this machine's server, to change it.

    Raises:
        SettingsError: files cannot be written there.
    """
    server = server_folder(home)
    check_writable(server.path, "--home")
    return server


@server_app.command("init")
def init_server(
    host: Annotated[
        list[str] | None,
        typer.Option(
            envvar="ZK0_SERVER_IP",
            help="Name or address under which nodes reach this machine; unset: only nodes on this machine can connect.",
        ),
    ] = None,
    port: Annotated[int, typer.Option(min=1, max=65535, help="The only port that is open to the network.")] = 9092,
    bind: Annotated[
        str | None, typer.Option(help="Address that the port listens on; unset: all, or loopback without --host.")
    ] = None,
    public: Annotated[
        str, typer.Option(help="HOST:PORT in enrolment kits, if different from the first --host and --port.")
    ] = "",
    in_memory: Annotated[
        bool, typer.Option("--in-memory", help="Do not store runs and messages on disk; they end with a restart.")
    ] = False,
    home: HomeOption = DEFAULT_HOME,
) -> None:
    """Create a private certificate authority, the server's certificate and its settings.

    Run it again to change the settings; authority and enrolled nodes stay.
    """
    with errors_to_exit_codes():
        from zk0.federation.network.server import ServerSettings

        server = writable_server_folder(home)
        hosts = tuple(host or ("127.0.0.1",))
        listen = bind or ("0.0.0.0" if host else "127.0.0.1")
        settings = ServerSettings(hosts=hosts, public=public, port=port, bind=listen, in_memory=in_memory)
        server.init(settings)
        typer.echo(f"server   {server.path}")
        typer.echo(f"address  {settings.address}")
        zk0bot = program_name("zk0bot")
        typer.echo(f"next     {zk0bot} server enroll NAME, then {zk0bot} server start")


@server_app.command("enroll")
def enroll_node(
    name: Annotated[str, typer.Argument(help="Name of the node in every session.")],
    out: Annotated[
        Path | None, typer.Option(help="File of the enrolment kit; unset: NAME.kit in the working directory.")
    ] = None,
    home: HomeOption = DEFAULT_HOME,
) -> None:
    """Enroll a node and write its enrolment kit: one file with address, certificate and private key for its operator.

    Send the kit over a safe channel: whoever has it can take part as this node.
    """
    with errors_to_exit_codes():
        server = writable_server_folder(home)
        target = out or Path(f"{Path(name).name}.kit")
        check_writable(target.absolute().parent, "--out")  # the key is in the kit only
        kit = server.enroll(name)
        kit.write(target)
        typer.echo(f"kit      {target}")
        typer.echo(f"key      {server.node_fingerprint(name)}")
        typer.echo(f"node     zk0bot client start DATASET --kit {target.name}")


@server_app.command("revoke")
def revoke_node(
    name: Annotated[str, typer.Argument(help="Name of an enrolled node.")], home: HomeOption = DEFAULT_HOME
) -> None:
    """Revoke a node's key; the server rejects its requests within a second."""
    with errors_to_exit_codes():
        writable_server_folder(home).revoke(name)
        typer.echo(f"{name} is no longer enrolled")


@server_app.command("start")
def start_server(foreground: ForegroundOption = False, home: HomeOption = DEFAULT_HOME) -> None:
    """Start the server, and wait until nodes can connect."""
    with errors_to_exit_codes():
        server = writable_server_folder(home)
        settings = server.settings()
        if foreground:
            server.prepare(settings)
            become_server(server)
        server.start()
        typer.echo(f"nodes can connect to {settings.address}")


@server_app.command("stop")
def stop_server(home: HomeOption = DEFAULT_HOME) -> None:
    """Stop the server and all its processes."""
    with errors_to_exit_codes():
        typer.echo("stopped" if server_folder(home).stop() else "was not running")


@server_app.command("status")
def show_server_status(home: HomeOption = DEFAULT_HOME) -> None:
    """Print the processes of the server, and the enrolled nodes."""
    with errors_to_exit_codes():
        print_server(server_folder(home))


@server_app.command("log")
def print_server_log(
    name: Annotated[str, typer.Argument(help="Log: superlink, gateway or supervisor.")] = "gateway",
    lines: LinesOption = 50,
    follow: FollowOption = False,
    home: HomeOption = DEFAULT_HOME,
) -> None:
    """Print the end of a log of the server."""
    with errors_to_exit_codes():
        print_log(server_folder(home).supervised.logs(), name, lines, follow)


@server_app.command("audit")
def audit_server(
    as_json: Annotated[
        bool,
        typer.Option("--json", help="Print one JSON line per act of the operator and per answer, with every field."),
    ] = False,
    sent: Annotated[
        Path | None,
        typer.Option(help="Also compare with a node's sent.jsonl (sent.pub beside it); needs --client."),
    ] = None,
    client: Annotated[str, typer.Option(help="Name of the node of --sent.")] = "",
    home: HomeOption = DEFAULT_HOME,
) -> None:
    """Print what the operator did and all answers that this server received, after a check of chains and signatures."""
    with errors_to_exit_codes():
        from flows.bot.audit_view import (
            print_client_journals,
            print_journal_comparison,
            print_operator_acts,
            print_received_answers,
            raise_for_client_journals,
        )
        from zk0.audit.journal import ReceivedJournal, SentJournal
        from zk0.audit.journal_comparison import compare_journals
        from zk0.federation.protocol.received_log import RECEIVED_JOURNAL
        from zk0.federation.protocol.shown_journals import check_client_journal, check_journal_file, client_heads

        server = server_folder(home)
        server.settings()
        journal = ReceivedJournal(server.path / RECEIVED_JOURNAL)
        acts, found = server.operations.read(), journal.read()
        check_journal_file(server.operations, [one.operations for one in found if one.operations is not None])
        if as_json:
            for one in (*acts, *found):
                typer.echo(one.model_dump_json())
            raise_for_client_journals(found)
            return
        print_operator_acts(acts)
        if not found:
            typer.echo(f"{journal.path}: no answers yet")
        else:
            print_received_answers(found, journal.public_key.read_text(encoding="ascii"))
            print_client_journals(found)
        if sent is not None:
            print_journal_comparison(compare_journals(client, SentJournal(sent).read(), found))
            check_client_journal(SentJournal(sent), client_heads(found).get(client, []))
        raise_for_client_journals(found)


def print_server(server: "ServerFolder") -> None:
    """Print state and address of a server, its processes and its enrolled nodes."""
    settings, runs = server.settings(), server.supervised.state() is not None
    state = "running" if runs else "not running"
    typer.secho(f"server   {state}, address {settings.address}", bold=True)
    print_processes(server.supervised)
    for node in server.node_statuses():
        since = f" since {node.since[:19]} UTC" if node.since else ""
        typer.echo(f"  node {node.name:<20} {node.status}{since}  {node.fingerprint}")


def become_server(server: "ServerFolder") -> NoReturn:
    """Replace this process by the server, whose processes are prepared; it runs until a signal ends it."""
    os.execv(sys.executable, [sys.executable, "-m", "zk0.federation.network.foreground_server", str(server.path)])

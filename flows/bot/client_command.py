"""`zk0bot client`: commands of the machine that holds a dataset and takes part in a federation."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.bot.process_view import print_log, print_processes
from flows.bot.server_command import DEFAULT_HOME, FollowOption, ForegroundOption, HomeOption, LinesOption
from flows.cli.command_group import command_group
from flows.cli.errors_to_exit_codes import errors_to_exit_codes
from flows.cli.program_name import program_name
from zk0.records import JointUnits
from zk0.settings.home_folder import expand_home
from zk0.storage.writable import check_readable, check_writable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from zk0.audit.journal import SentMessage
    from zk0.federation.network.node import NodeFolder
    from zk0.settings.dataset_settings import ClientSettings

client_app = command_group(
    "client",
    "Take part in a federation with a dataset on this machine.",
)


def node_folder(home: Path) -> "NodeFolder":
    """Return the folder of the node in a home.

    Raises:
        SettingsError: this user may not read it.
    """
    from zk0.federation.network.node import NodeFolder

    node = NodeFolder((expand_home(home) / "client").resolve())
    check_readable(node.path, "--home")
    return node


@client_app.command("start")
def start_client(
    dataset: Annotated[
        str, typer.Argument(help="Dataset: hf:user/name, hf:user/name@REVISION, local:/path or sim:task.")
    ],
    kit: Annotated[
        Path | None, typer.Option(help="Enrolment kit from the server's operator; needed at the first start.")
    ] = None,
    rename: Annotated[
        list[str] | None,
        typer.Option(
            "--rename",
            metavar="OLD=NEW",
            help="Rename a feature key to that of the federation's contract; may be given several times.",
        ),
    ] = None,
    units: Annotated[
        JointUnits | None,
        typer.Option(help="Units of state and action, where joint names and values do not tell them."),
    ] = None,
    cache: Annotated[Path, typer.Option("--cache", help="Folder of downloads and of the feature cache.")] = Path(
        "~/.cache/zk0"
    ),
    hours: Annotated[
        str | None,
        typer.Option(help="Hours in which the node works, by this machine's clock: 22:00-06:00; unset: always."),
    ] = None,
    sessions: Annotated[
        int | None, typer.Option(min=1, help="Stop the node after so many sessions have ended; unset: it stays.")
    ] = None,
    limits: Annotated[
        Path | None,
        typer.Option(help="TOML file with limits of what a server may ask of this node (docs/node.md); it is kept."),
    ] = None,
    foreground: ForegroundOption = False,
    home: HomeOption = DEFAULT_HOME,
) -> None:
    """Start this machine's node: it trains and evaluates with this dataset in the server's sessions."""
    with errors_to_exit_codes():
        from zk0.federation.network.enrolment_kit import EnrolmentKit
        from zk0.federation.network.hours import DailyHours

        daily_hours = DailyHours.parse(hours) if hours else None
        node = node_folder(home)
        check_writable(node.path, "--home")
        check_writable(expand_home(cache).resolve(), "--cache")
        if kit is not None:
            node.install_kit(EnrolmentKit.read(kit))
        if limits is not None:
            node.install_limits(limits)
        settings = _client_settings(node.read_kit().name, dataset, (rename or [], units), cache)
        if foreground:
            node.prepare(settings, expand_home(cache).resolve(), daily_hours, sessions)
            os.execv(sys.executable, [sys.executable, "-m", "zk0.federation.network.supervisor", str(node.path)])
        node.start(settings, expand_home(cache).resolve(), hours=daily_hours, max_sessions=sessions)
        typer.echo(f"node {settings.name} started: server {node.read_kit().server}, dataset {settings.dataset}")
        if daily_hours is not None:
            typer.echo(f"it works in the hours {daily_hours}; outside them none of its processes runs")
        zk0bot = program_name("zk0bot")
        typer.echo(f"to watch it: {zk0bot} client status, {zk0bot} client log")


@client_app.command("stop")
def stop_client(home: HomeOption = DEFAULT_HOME) -> None:
    """Stop this machine's node and all its processes; finished work is kept."""
    with errors_to_exit_codes():
        typer.echo("stopped" if node_folder(home).stop() else "was not running")


@client_app.command("status")
def show_client_status(home: HomeOption = DEFAULT_HOME) -> None:
    """Print the processes of this machine's node."""
    with errors_to_exit_codes():
        print_client(node_folder(home))


@client_app.command("log")
def print_client_log(
    name: Annotated[
        str, typer.Argument(help="Log: client (training and sent updates), supernode, agent, worker-0 or supervisor.")
    ] = "client",
    lines: LinesOption = 50,
    follow: FollowOption = False,
    home: HomeOption = DEFAULT_HOME,
) -> None:
    """Print the end of a log of this machine's node."""
    with errors_to_exit_codes():
        node = node_folder(home)
        print_log([*node.supervised.logs(), *node.scratch.glob("client.log")], name, lines, follow)


@client_app.command("audit")
def audit_client(
    folder: Annotated[
        Path | None, typer.Option(help="Folder of a client in a session on this machine; unset: this machine's node.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON line per message, with everything that was sent.")
    ] = False,
    heads: Annotated[
        Path | None,
        typer.Option(help="Also compare with the ledger heads of another node (its scratch/heads/*.jsonl)."),
    ] = None,
    ledger: Annotated[
        Path | None,
        typer.Option(help="Also compare with a session's ledger.jsonl or a model card (README.md)."),
    ] = None,
    received: Annotated[
        Path | None, typer.Option(help="Also compare with the server's accepted.jsonl (accepted.pub beside it).")
    ] = None,
    home: HomeOption = DEFAULT_HOME,
) -> None:
    """Print all messages sent from this machine, after a check of hash chain, signatures, receipts and ledger heads."""
    with errors_to_exit_codes():
        from flows.bot.audit_view import print_sent_messages
        from zk0.federation.protocol.receipts import audited_messages

        scratch = folder or node_folder(home).scratch
        found = audited_messages(scratch)
        if as_json:
            for one in found:
                typer.echo(one.model_dump_json())
        else:
            print_sent_messages(found)
        if received is not None:
            _compare_with_server(scratch, node_folder(home).read_kit().name, received)
        if folder is None:
            _audit_heads(scratch, node_folder(home).read_kit().ledger_key, heads, ledger, as_json)
        _audit_server_journal([one.sent for one in found], as_json)


def _compare_with_server(scratch: Path, client: str, received: Path) -> None:
    """Compare this client's journal with that of the server, and that with the heads that the server has sent.

    Raises:
        LedgerError: one of the two journals lacks lines that it had.
    """
    from flows.bot.audit_view import print_journal_comparison
    from zk0.audit.journal import ReceivedJournal, SentJournal
    from zk0.audit.journal_comparison import compare_journals
    from zk0.federation.protocol.sent_log import SENT_JOURNAL
    from zk0.federation.protocol.shown_journals import check_journal_file

    sent, theirs = SentJournal(scratch / SENT_JOURNAL).read(), ReceivedJournal(received)
    print_journal_comparison(compare_journals(client, sent, theirs.read()))
    check_journal_file(theirs, [one.server_journal for one in sent if one.server_journal is not None])


def _audit_server_journal(sent: "Sequence[SentMessage]", as_json: bool) -> None:
    """Check the heads of the server's journal that came with its requests.

    Raises:
        FederationError: lines of it were removed.
    """
    from zk0.errors import FederationError
    from zk0.federation.protocol.shown_journals import server_journal_problem

    if problem := server_journal_problem(sent):
        raise FederationError(f"the server's journal of received answers is not the one that it was: {problem}")
    count = sum(one.server_journal is not None for one in sent)
    if count and not as_json:
        typer.echo(f"the server's journal of answers: {count} heads came with {len(sent)} requests; none contradicts")


def _audit_heads(scratch: Path, key: str, other: Path | None, ledger: Path | None, as_json: bool) -> None:
    """Check the ledger heads that the server has shown, and compare them with a file of another node and with a ledger.

    Raises:
        FederationError: the server's ledger is not one history.
    """
    from flows.bot.audit_view import print_session_heads
    from zk0.errors import FederationError, list_problems
    from zk0.federation.protocol.heads_audit import audited_heads, compare_with_ledger, compare_with_node

    found = audited_heads(scratch, key)
    if not as_json:
        print_session_heads(found, key)
    if problems := [f"{one.session}: {one.problem}" for one in found if one.problem]:
        raise FederationError(list_problems("the ledger of the server is not one history", problems))
    if other is not None:
        typer.echo(compare_with_node(scratch, key, other))
    if ledger is not None:
        typer.echo(compare_with_ledger(scratch, ledger))


def print_client(node: "NodeFolder") -> None:
    """Print name, server and key of a node, and its processes."""
    kit, runs = node.read_kit(), node.supervised.state() is not None
    typer.secho(f"client   {kit.name}: {'running' if runs else 'not running'}, server {kit.server}", bold=True)
    typer.echo(f"  key        {kit.fingerprint()}")
    print_processes(node.supervised)


def _client_settings(
    name: str, dataset: str, described: tuple[list[str], JointUnits | None], cache: Path
) -> "ClientSettings":
    """Return the settings of the client; a missing local dataset raises an error before anything is started."""
    from flows.cli.data_command import parse_renames
    from zk0.data.locate import locate
    from zk0.settings.dataset_settings import ClientSettings, with_scheme

    scheme, _, rest = with_scheme(dataset).partition(":")
    if scheme == "local":
        dataset = f"local:{expand_home(rest).resolve()}"
        locate(dataset, expand_home(cache))
    renames, units = described
    return ClientSettings(name=name, dataset=dataset, rename_map=parse_renames(renames), units=units)

"""`zk0bot`: federations over the network. It opens quickly: what is heavy is imported by the command that needs it."""

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows import bot_client, bot_server
from flows.bot_client import client_app, show_client
from flows.bot_server import HOME, Home, server_app, show_server
from flows.failure import one_clear_line
from flows.session_run import parse_overrides, run_session
from zk0.errors import SettingsError

if TYPE_CHECKING:
    from zk0.federation.server import ServerFolder

Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="NAME=VALUE", help="Replace a setting: --set training.lr=3e-4."),
]
SESSION = Path("deployments/sessions/federation.toml")

app = typer.Typer(
    name="zk0bot",
    help="Federated training over the network: a server, nodes that keep their data, and sessions between them.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(server_app)
app.add_typer(client_app)


@app.callback()
def zk0bot() -> None:
    """Federated training over the network: a server, nodes that keep their data, and sessions between them."""


@app.command()
def run(
    config: Annotated[
        Path | None, typer.Argument(help=f"A session file; unset: {SESSION}.", show_default=False)
    ] = None,
    rounds: Annotated[int | None, typer.Option(min=1, help="How many; unset: as the file says.")] = None,
    stream: Annotated[bool, typer.Option("--stream", help="Log lines instead of a progress bar.")] = False,
    settings: Settings = None,
    resume: Annotated[
        Path | None, typer.Option(help="Take up the session in this folder after its last finished round.")
    ] = None,
    home: Home = HOME,
) -> None:
    """Run a session with the nodes that are connected to this machine's server."""
    with one_clear_line():
        overrides = parse_overrides(settings or [])
        if resume is not None and (config is not None or rounds is not None):
            raise SettingsError("zk0bot run --resume: a session is taken up with its own settings; leave the rest out")
        if resume is None:
            server = bot_server.folder_of(home)
            server.endpoint()  # told at once, before anything is started
            overrides = _of_this_server(server, overrides)
            overrides |= {"rounds": rounds} if rounds else {}
        run_session(None if resume else config or SESSION, overrides, resume, quiet=stream)


@app.command()
def watch(
    config: Annotated[
        Path | None, typer.Argument(help=f"A session file; unset: {SESSION}.", show_default=False)
    ] = None,
    min_fit_clients: Annotated[
        int, typer.Option(min=1, help="Nodes that must be present; all that the session names, where it names some.")
    ] = 2,
    cooldown: Annotated[
        float, typer.Option(min=0, help="Hours after which a session begins even though no new node has come.")
    ] = 24.0,
    every: Annotated[float, typer.Option(min=0.1, help="Seconds between two looks.")] = 15.0,
    settings: Settings = None,
    home: Home = HOME,
) -> None:
    """Begin a session by itself whenever enough nodes are present; until Ctrl-C.

    It runs the Prefect deployment zk0/federated-session, so a worker of its pool must run; one session at a time.
    """
    with one_clear_line():
        from flows.watching_nodes import NodeWatch, check_prefect
        from flows.watching_nodes import watch as look_for_ever
        from zk0.federation.watch import Rule
        from zk0.session import load_session

        check_prefect()
        server = bot_server.folder_of(home)
        server.settings()
        overrides = _of_this_server(server, parse_overrides(settings or []))
        rule = Rule(least=min_fit_clients, cooldown_seconds=3600 * cooldown)
        file = config or SESSION
        one = NodeWatch(server, rule, load_session(file, overrides), {"config": str(file), "overrides": overrides})
        look_for_ever(one, every, lambda line: typer.echo(f"{datetime.now():%Y-%m-%d %H:%M:%S} {line}"))


@app.command()
def status(home: Home = HOME) -> None:
    """What runs on this machine: a server, a node, or both."""
    with one_clear_line():
        server, node = bot_server.folder_of(home), bot_client.folder_of(home)
        if (server.path / "server.toml").is_file():
            show_server(server)
        if (node.path / "kit.json").is_file():
            show_client(node)
        if not server.path.is_dir() and not node.path.is_dir():
            typer.echo(f"neither a server nor a node in {home.expanduser()}")


@app.command()
def stop(home: Home = HOME) -> None:
    """Stop what runs on this machine, the node first."""
    with one_clear_line():
        for what, folder in (("client", bot_client.folder_of(home)), ("server", bot_server.folder_of(home))):
            typer.echo(f"{what:<8} {'stopped' if folder.stop() else 'was not running'}")


def _of_this_server(server: "ServerFolder", overrides: dict[str, Any]) -> dict[str, Any]:
    """A session's settings, for the nodes of this machine's server."""
    return {"federation.engine": "deployment", "federation.server": str(server.path), **overrides}


if __name__ == "__main__":
    app()

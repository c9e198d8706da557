"""`zk0bot`: federations over the network. It opens quickly: what is heavy is imported by the command that needs it."""

from pathlib import Path
from typing import Annotated

import typer

from flows import bot_client, bot_server
from flows.bot_client import client_app, show_client
from flows.bot_server import HOME, Home, server_app, show_server
from flows.failure import one_clear_line
from flows.session_run import parse_overrides, run_session
from zk0.errors import SettingsError

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
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Replace a setting: --set training.lr=3e-4."),
    ] = None,
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
            overrides = {"federation.engine": "deployment", "federation.server": str(server.path), **overrides}
            overrides |= {"rounds": rounds} if rounds else {}
        run_session(None if resume else config or SESSION, overrides, resume, quiet=stream)


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


if __name__ == "__main__":
    app()

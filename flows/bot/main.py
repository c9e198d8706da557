"""The command line `zk0bot`: federations over the network. Commands import heavy libraries only when they need them."""

import os
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.bot.client_command import client_app, node_folder, print_client
from flows.bot.keys_command import keys_app
from flows.bot.process_view import CLIENT_LOG, print_log, print_logs
from flows.bot.serve_command import serve
from flows.bot.server_command import (
    DEFAULT_HOME,
    FollowOption,
    HomeOption,
    LinesOption,
    print_server,
    server_app,
    server_folder,
)
from flows.bot.watch_options import DEFAULT_SESSION, ConfigArgument, CooldownOption, MinNodesOption, SettingsOption
from flows.cli.command_group import command_group
from flows.cli.errors_to_exit_codes import errors_to_exit_codes
from flows.cli.session_run import parse_overrides, run_session
from flows.cli.version_option import VersionOption
from flows.proxies import exempt_loopback_from_proxies
from zk0.errors import SettingsError
from zk0.settings.home_folder import expand_home

if TYPE_CHECKING:
    from zk0.federation.network.server import ServerFolder

zk0bot_app = command_group(
    "zk0bot",
    "Federated training over the network: a server, nodes that keep their datasets, and sessions between them.",
    context_settings={"help_option_names": ["-h", "--help"]},
)
zk0bot_app.add_typer(server_app)
client_app.add_typer(keys_app)
zk0bot_app.add_typer(client_app)
zk0bot_app.command("serve")(serve)


@zk0bot_app.callback()
def zk0bot(version: VersionOption = False) -> None:
    """Federated training over the network: a server, nodes that keep their datasets, and sessions between them."""
    exempt_loopback_from_proxies()


@zk0bot_app.command("run")
def zk0bot_run(
    config: Annotated[
        Path | None, typer.Argument(help=f"Session file; unset: {DEFAULT_SESSION}.", show_default=False)
    ] = None,
    rounds: Annotated[
        int | None, typer.Option(min=1, help="Number of rounds; unset: that of the session file.")
    ] = None,
    stream: Annotated[bool, typer.Option("--stream", help="Print log lines instead of a progress bar.")] = False,
    settings: SettingsOption = None,
    resume: Annotated[
        Path | None, typer.Option(help="Resume the session in this folder after its last finished round.")
    ] = None,
    home: HomeOption = DEFAULT_HOME,
) -> None:
    """Run a session with the nodes that are connected to this machine's server."""
    with errors_to_exit_codes():
        overrides = parse_overrides(settings or [])
        if resume is not None and (config is not None or rounds is not None):
            raise SettingsError(
                "zk0bot run --resume: a session resumes with its own settings; leave session file and --rounds out"
            )
        if resume is None:
            server = server_folder(home)
            server.endpoint()  # raises an error before anything is started
            overrides = _with_server(server, overrides)
            overrides |= {"rounds": rounds} if rounds else {}
        run_session(None if resume else config or DEFAULT_SESSION, overrides, resume, quiet=stream)


@zk0bot_app.command("watch")
def zk0bot_watch(
    config: ConfigArgument = None,
    min_fit_clients: MinNodesOption = 2,
    cooldown: CooldownOption = 24.0,
    every: Annotated[float, typer.Option(min=0.1, help="Seconds between two checks.")] = 15.0,
    settings: SettingsOption = None,
    api_key_file: Annotated[
        Path | None, typer.Option(help="File with the key of the Prefect API; unset: PREFECT_API_AUTH_STRING.")
    ] = None,
    home: HomeOption = DEFAULT_HOME,
) -> None:
    """Start a session automatically whenever enough nodes are connected; runs until Ctrl-C.

    Each session is a run of the Prefect deployment zk0/federated-session, so a worker of its pool must run. One session
    runs at a time.
    """
    with errors_to_exit_codes():
        from flows.bot.session_trigger import SessionTrigger, check_forever, check_prefect_configured
        from flows.session_loading import load_session_to_run
        from zk0.federation.network.start_rule import StartRule

        if api_key_file is not None:
            os.environ["PREFECT_API_AUTH_STRING"] = api_key_file.read_text(encoding="utf-8").strip()
        check_prefect_configured()
        server = server_folder(home)
        server.settings()
        overrides = _with_server(server, parse_overrides(settings or []))
        rule = StartRule(min_nodes=min_fit_clients, cooldown_seconds=3600 * cooldown)
        file = config or DEFAULT_SESSION
        parameters = {"config": str(file), "overrides": overrides}
        trigger = SessionTrigger(server, rule, load_session_to_run(file, overrides), parameters)
        check_forever(trigger, every, lambda line: typer.echo(f"{datetime.now():%Y-%m-%d %H:%M:%S} {line}"))


@zk0bot_app.command("status")
def zk0bot_status(home: HomeOption = DEFAULT_HOME) -> None:
    """Print the processes of this machine's server and node."""
    with errors_to_exit_codes():
        server, node = server_folder(home), node_folder(home)
        if (server.path / "server.toml").is_file():
            print_server(server)
        if (node.path / "kit.json").is_file():
            print_client(node)
        if not server.path.is_dir() and not node.path.is_dir():
            typer.echo(f"neither a server nor a node in {expand_home(home)}")


@zk0bot_app.command("logs")
def zk0bot_logs(home: HomeOption = DEFAULT_HOME) -> None:
    """List the logs of this machine's server and node."""
    with errors_to_exit_codes():
        print_logs(_all_logs(home))


@zk0bot_app.command("log")
def zk0bot_log(
    name: Annotated[
        str | None,
        typer.Argument(help="Log, as `zk0bot logs` lists them; unset: client of a node, gateway of a server."),
    ] = None,
    lines: LinesOption = 50,
    follow: FollowOption = False,
    home: HomeOption = DEFAULT_HOME,
) -> None:
    """Print the end of a log of this machine's server or node."""
    with errors_to_exit_codes():
        is_node = (node_folder(home).path / "kit.json").is_file()
        logs, wanted = _all_logs(home), name or (CLIENT_LOG if is_node else "gateway")
        if len([file for file in logs if file.stem == wanted]) > 1:
            raise SettingsError(
                f"{wanted}: server and node have such a log; zk0bot server log {wanted}, or zk0bot client log {wanted}"
            )
        print_log(logs, wanted, lines, follow)


def _all_logs(home: Path) -> list[Path]:
    """Return the logs of this machine's server and node."""
    server, node = server_folder(home), node_folder(home)
    return [*server.supervised.logs(), *node.supervised.logs(), *node.scratch.glob("client.log")]


@zk0bot_app.command("stop")
def zk0bot_stop(home: HomeOption = DEFAULT_HOME) -> None:
    """Stop this machine's node, then its server."""
    with errors_to_exit_codes():
        for name, folder in (("client", node_folder(home)), ("server", server_folder(home))):
            typer.echo(f"{name:<8} {'stopped' if folder.stop() else 'was not running'}")


def _with_server(server: "ServerFolder", overrides: dict[str, Any]) -> dict[str, Any]:
    """Return the overrides with this machine's server as the federation; given overrides take precedence."""
    return {"federation.engine": "deployment", "federation.server": str(server.path), **overrides}


if __name__ == "__main__":
    zk0bot_app()

"""`zk0bot serve`: a server that is always on, with Prefect and the watcher that starts its sessions."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.bot.server_command import (
    DEFAULT_HOME,
    ForegroundOption,
    HomeOption,
    become_server,
    writable_server_folder,
)
from flows.bot.watch_options import DEFAULT_SESSION, ConfigArgument, CooldownOption, MinNodesOption, SettingsOption
from flows.cli.errors_to_exit_codes import errors_to_exit_codes
from flows.cli.program_name import program_name
from zk0.errors import SettingsError
from zk0.processes import check_port_free

if TYPE_CHECKING:
    from zk0.federation.network.supervised_folder import ProcessSpec

_PREFECT_STOP_SECONDS = 50.0
"""`zk0 ui` gives a running session 40 s to end."""


def serve(
    config: ConfigArgument = None,
    min_fit_clients: MinNodesOption = 2,
    cooldown: CooldownOption = 24.0,
    settings: SettingsOption = None,
    ui_port: Annotated[int, typer.Option(min=1, max=65535, help="Port of Prefect's UI, on this machine only.")] = 4200,
    foreground: ForegroundOption = False,
    home: HomeOption = DEFAULT_HOME,
) -> None:
    """Run a server that is always on: it waits for nodes, and runs sessions with them by itself.

    Gateway, SuperLink, Prefect with a worker, and the watcher are supervised together: each is started again when it
    ends. `zk0bot server stop`, `status` and `log` work on all of them. Start it in the root of a clone.
    """
    with errors_to_exit_codes():
        from flows.prefect_local.api_key import read_or_make_api_key
        from flows.prefect_local.ports import LOOPBACK

        server = writable_server_folder(home)
        addresses = server.settings()
        if server.supervised.state() is None:
            check_port_free(LOOPBACK, ui_port, "--ui-port")
        prefect_home = server.path.parent / "prefect"
        read_or_make_api_key(prefect_home)
        watch = watch_arguments(
            config or DEFAULT_SESSION, min_fit_clients, cooldown, settings or [], server.path.parent
        )
        processes = serving_processes(Path.cwd(), prefect_home, ui_port, watch)
        if foreground:
            server.prepare(addresses, processes)
            become_server(server)
        server.start(processes=processes)
        typer.echo(f"nodes can connect to {addresses.address}; sessions start with {min_fit_clients} nodes")
        typer.echo(f"Prefect's UI and how to sign in: {program_name('zk0bot')} server log prefect")


def watch_arguments(
    config: Path, min_fit_clients: int, cooldown: float, settings: list[str], home: Path
) -> tuple[str, ...]:
    """Return the arguments of `zk0bot watch`, after a check of the session that it starts.

    Raises:
        SettingsError: the session file or an override is invalid.
    """
    from flows.cli.session_run import parse_overrides
    from flows.session_loading import load_session_to_run

    load_session_to_run(config, parse_overrides(settings))
    rule = ("--min-fit-clients", str(min_fit_clients), "--cooldown", str(cooldown))
    return (str(config), *rule, *(word for one in settings for word in ("--set", one)), "--home", str(home))


def serving_processes(
    root: Path, prefect_home: Path, ui_port: int, watch: tuple[str, ...]
) -> "tuple[ProcessSpec, ProcessSpec]":
    """Return Prefect with its worker, and the watcher.

    Args:
        root: of a clone; the supervisor starts the processes there.
        prefect_home: of Prefect, with its API key.
        ui_port: of Prefect's server.
        watch: arguments of `zk0bot watch`.

    Raises:
        SettingsError: there is no prefect.yaml.
    """
    from flows.prefect_local.api_key import api_key_file
    from zk0.federation.network.supervised_folder import ProcessSpec

    if not (root / "prefect.yaml").is_file():
        raise SettingsError(f"{root}: no prefect.yaml; expected the root of a zk0 clone or a folder of `zk0 init`")
    ui = ("flows.cli.main", "ui", "--home", str(prefect_home), "--port", str(ui_port))
    watcher = ("flows.bot.main", "watch", *watch, "--api-key-file", str(api_key_file(prefect_home)))
    return (
        ProcessSpec(name="prefect", command=(sys.executable, "-m", *ui), stop_seconds=_PREFECT_STOP_SECONDS),
        ProcessSpec(
            name="watch",
            command=(sys.executable, "-m", *watcher),
            environment={"PREFECT_API_URL": f"http://127.0.0.1:{ui_port}/api"},
        ),
    )

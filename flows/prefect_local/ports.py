"""The port on loopback for a Prefect server."""

import socket

from zk0.errors import SettingsError
from zk0.processes import check_port_free

DEFAULT_PORT = 4200
LOOPBACK = "127.0.0.1"
PORT_ADVICE = "--port, or leave it out"
"""The option of `zk0 ui` that changes its port."""


def choose_port(wanted: int | None) -> int:
    """Return a port that is free now.

    Args:
        wanted: the port; None: 4200, or any free one where that is taken; 0: any free one.

    Raises:
        SettingsError: the wanted port is taken.
    """
    if wanted:
        check_port_free(LOOPBACK, wanted, PORT_ADVICE)
        return wanted
    if wanted is None and (free := _bound_port(DEFAULT_PORT)) is not None:
        return free
    if (free := _bound_port(0)) is not None:
        return free
    raise SettingsError(f"no port on {LOOPBACK} is free")


def _bound_port(port: int) -> int | None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return None
        return int(probe.getsockname()[1])

"""The port on loopback for a Prefect server."""

import socket

from zk0.errors import SettingsError

DEFAULT_PORT = 4200
LOOPBACK = "127.0.0.1"


def choose_port(wanted: int | None) -> int:
    """Return a port that is free now.

    Args:
        wanted: the port; None: 4200, or any free one where that is taken; 0: any free one.

    Raises:
        SettingsError: the wanted port is taken.
    """
    if (free := _bound_port(DEFAULT_PORT if wanted is None else wanted)) is not None:
        return free
    if wanted is None and (free := _bound_port(0)) is not None:
        return free
    raise SettingsError(f"port {wanted} on {LOOPBACK} is taken; choose another, or leave --port out")


def _bound_port(port: int) -> int | None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return None
        return int(probe.getsockname()[1])

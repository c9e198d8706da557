"""Command lines of Flower's SuperLink and SuperNode, as a supervisor runs them."""

import socket
import sys
from pathlib import Path

from zk0.federation.flower.private_api import SUPERLINK_CODE, SUPERNODE_CODE
from zk0.federation.network.supervised_folder import ProcessSpec

LOOPBACK_ADDRESS = "127.0.0.1"


def superlink_process(
    home: Path, port: int, tls: tuple[Path, Path, Path], secret: Path, database: Path | None
) -> ProcessSpec:
    """Return a SuperLink on loopback that starts no process for a run, because the session is the ServerApp.

    Args:
        home: Flower's folder (FLWR_HOME).
        port: on loopback.
        tls: certificate, key, and the certificate of their authority.
        secret: file with the secret that acquiring a run requires.
        database: None keeps runs and messages in memory only.
    """
    certificate, key, authority = map(str, tls)
    command = ["--host", LOOPBACK_ADDRESS, "--port", str(port), "--isolation", "process", "--enable-supernode-auth"]
    command += ["--ssl-certfile", certificate, "--ssl-keyfile", key, "--ssl-ca-certfile", authority]
    command += ["--superexec-auth-secret-file", str(secret), "--disable-runtime-dependency-installation"]
    command += [] if database is None else ["--database", str(database)]
    whole = (sys.executable, "-c", SUPERLINK_CODE, *command)
    return ProcessSpec(name="superlink", command=whole, environment=_environment(home))


def supernode_process(home: Path, server: str, port: int, ca_certificate: Path, key: Path, secret: Path) -> ProcessSpec:
    """Return a SuperNode that starts no process for a message, because the agent handles messages.

    A SuperNode waits forever for the reply to a message. Therefore it is restarted when the agent ends.

    Args:
        home: Flower's folder (FLWR_HOME).
        server: host:port of the gateway.
        port: of the SuperNode's own API, on loopback.
        ca_certificate: of the authority that signed the server's certificate.
        key: the node's private key.
        secret: file with the secret that acquiring a message requires.
    """
    command = ["--superlink", server, "--root-certificates", str(ca_certificate), "--isolation", "process"]
    command += ["--auth-supernode-private-key", str(key), "--superexec-auth-secret-file", str(secret)]
    command += ["--host", LOOPBACK_ADDRESS, "--port", str(port)]
    whole = (sys.executable, "-c", SUPERNODE_CODE, *command)
    return ProcessSpec(name="supernode", command=whole, environment=_environment(home), restart_after="agent")


def free_port() -> int:
    """Return a loopback port that no process listens on now."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK_ADDRESS, 0))
        return int(probe.getsockname()[1])


def _environment(home: Path) -> dict[str, str]:
    return {
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "PYTHONUNBUFFERED": "1",
    }

"""What Flower's own processes are started with."""

import socket
import sys
from pathlib import Path

from zk0.federation.kept import Kept

LOOPBACK = "127.0.0.1"
_SUPERLINK = "from flwr.superlink.cli import flower_superlink as run; run()"
_SUPERNODE = "from flwr.supernode.cli import flower_supernode as run; run()"


def superlink(home: Path, port: int, tls: tuple[Path, Path, Path], secret: Path, database: Path | None) -> Kept:
    """A SuperLink on loopback that starts no process for a run: the session's own is the ServerApp.

    Args:
        home: Flower's folder for this role.
        port: on loopback.
        tls: certificate, key, and the authority's certificate.
        secret: file whose bytes show who may take a run.
        database: None keeps runs and messages in memory alone.
    """
    certificate, key, authority = map(str, tls)
    command = ["--host", LOOPBACK, "--port", str(port), "--isolation", "process", "--enable-supernode-auth"]
    command += ["--ssl-certfile", certificate, "--ssl-keyfile", key, "--ssl-ca-certfile", authority]
    command += ["--superexec-auth-secret-file", str(secret), "--disable-runtime-dependency-installation"]
    command += [] if database is None else ["--database", str(database)]
    return Kept(name="superlink", command=(sys.executable, "-c", _SUPERLINK, *command), environment=_environment(home))


def supernode(home: Path, server: str, port: int, authority: Path, key: Path, secret: Path) -> Kept:
    """A SuperNode that starts no process for a message: the agent beside it takes them.

    It waits for the answer to a message for ever, so it is started anew when the agent has ended in the middle of one.

    Args:
        home: Flower's folder for this role.
        server: host:port of the gateway.
        port: of the SuperNode's own API, on loopback.
        authority: certificate that has signed the server's.
        key: the node's private key.
        secret: file whose bytes show who may take a message.
    """
    command = ["--superlink", server, "--root-certificates", str(authority), "--isolation", "process"]
    command += ["--auth-supernode-private-key", str(key), "--superexec-auth-secret-file", str(secret)]
    command += ["--host", LOOPBACK, "--port", str(port)]
    whole = (sys.executable, "-c", _SUPERNODE, *command)
    return Kept(name="supernode", command=whole, environment=_environment(home), follows="agent")


def free_port() -> int:
    """A port of loopback that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


def _environment(home: Path) -> dict[str, str]:
    return {
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "PYTHONUNBUFFERED": "1",
    }

"""`python -m zk0.federation.network.foreground_server FOLDER`: the server under systemd or in a container.

A service manager stops it by a signal and not by `zk0bot server stop`; the journal of the operator's acts names both.
"""

import sys
from pathlib import Path

from zk0.federation.network.server import ServerFolder
from zk0.federation.network.supervisor import supervise


def run_in_foreground(folder: Path) -> None:
    """Run the prepared processes of a server until SIGTERM or SIGINT, and record the end."""
    supervise(folder)
    ServerFolder(folder).record_end()


if __name__ == "__main__":
    run_in_foreground(Path(sys.argv[1]))

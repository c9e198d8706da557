"""A node of a federation: a folder with its kit, its private work, and the processes that run from it."""

import sys
from pathlib import Path
from secrets import token_bytes

from zk0.errors import SettingsError
from zk0.federation.agent import AgentSettings
from zk0.federation.api import Endpoint
from zk0.federation.authority import write_private
from zk0.federation.hours import Hours
from zk0.federation.kept import Kept, KeptFolder
from zk0.federation.kit import Kit
from zk0.federation.processes import LOOPBACK, free_port, supernode
from zk0.folder import write_whole
from zk0.session import ClientSettings

_STOP_SECONDS = 60.0


class NodeFolder:
    """What `zk0bot client` works on."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.kept = KeptFolder(path)

    @property
    def scratch(self) -> Path:
        """Its log, its finished updates, and the journal of what left."""
        return self.path / "scratch"

    def take(self, kit: Kit) -> None:
        """Keep a kit here; whoever runs from this folder is then this node.

        Raises:
            SettingsError: this folder is another node's.
        """
        known = self.path / "kit.json"
        if known.is_file() and (name := Kit.read(known).name) != kit.name:
            raise SettingsError(f"{self.path}: belongs to the node {name}, not to {kit.name}; choose another --home")
        self.path.mkdir(parents=True, exist_ok=True)
        self.path.chmod(0o700)
        kit.write(known)
        write_private(self.path / "node.key", kit.key.encode())
        write_private(self.path / "ca.crt", kit.authority.encode())

    def kit(self) -> Kit:
        """Who this node is.

        Raises:
            SettingsError: there is no node in this folder.
        """
        known = self.path / "kit.json"
        if not known.is_file():
            raise SettingsError(f"{self.path}: no node here; the first start needs --kit FILE")
        return Kit.read(known)

    def start(self, client: ClientSettings, cache: Path, outlives: bool = True, hours: Hours | None = None) -> None:
        """Start SuperNode and agent, to outlive this process or to end with it.

        Outside its hours neither runs, and the server sees a node that is offline.

        Raises:
            SettingsError: they run already.
        """
        if self.kept.state() is not None:
            raise SettingsError(f"{self.path}: its node is running already")
        self.prepare(client, cache, hours)
        self.kept.start(outlives)

    def prepare(self, client: ClientSettings, cache: Path, hours: Hours | None = None) -> None:
        """What the keeper starts, and what the agent works with."""
        secret, port = self.path / "secret", free_port()
        write_private(secret, token_bytes(32))
        endpoint = Endpoint(address=f"{LOOPBACK}:{port}", secret=secret)
        settings = AgentSettings(client=client, scratch=self.scratch, cache=cache, supernode=endpoint)
        write_whole(self.path / "agent.json", settings.model_dump_json(indent=2))
        ca, key = self.path / "ca.crt", self.path / "node.key"
        link = supernode(self.path / "flower", self.kit().server, port, ca, key, secret)
        agent = Kept(name="agent", command=(sys.executable, "-m", "zk0.federation.agent", str(self.path)))
        self.kept.write([one.model_copy(update={"hours": hours}) for one in (link, agent)])

    def stop(self) -> bool:
        """End it; False where it did not run."""
        return self.kept.stop(_STOP_SECONDS)

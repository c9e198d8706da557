"""The server of a federation: a folder with its authority, its list of nodes, and the processes that run from it."""

import ssl
import sys
import time
import tomllib
from collections.abc import Sequence
from pathlib import Path
from secrets import token_bytes

import tomli_w
from flwr.proto.control_pb2 import ListNodesRequest, ListNodesResponse
from pydantic import Field, ValidationError

from zk0.errors import FederationError, NoAnswer, SettingsError
from zk0.federation.api import Api, Endpoint
from zk0.federation.authority import Authority, fingerprint, make_node_key, write_private
from zk0.federation.gateway import GatewaySettings
from zk0.federation.kept import Kept, KeptFolder
from zk0.federation.kit import Kit
from zk0.federation.processes import LOOPBACK, free_port, superlink
from zk0.folder import write_whole
from zk0.records import Record
from zk0.session import Name

_READY_SECONDS = 90.0
_STOP_SECONDS = 60.0
_LOOK_SECONDS = 0.2


class ServerSettings(Record):
    """How nodes reach the server."""

    hosts: tuple[str, ...] = Field(min_length=1, description="names and addresses of this machine")
    public: str = Field(default="", description="host:port that kits name; empty: the first host and the port")
    port: int = Field(default=9092, ge=1, le=65535, description="the one port that is open to the network")
    bind: str = Field(default=LOOPBACK, description="address that the port listens on")
    in_memory: bool = Field(default=False, description="keep no runs and messages on disk: a restart forgets them")

    @property
    def address(self) -> str:
        """Where nodes come to."""
        return self.public or f"{self.hosts[0]}:{self.port}"


class Node(Record):
    """One enrolled node as the server sees it."""

    name: Name
    fingerprint: str
    status: str
    """online, offline, registered (never seen), or unknown (the server does not run)."""
    since: str = ""


class ServerFolder:
    """What `zk0bot server` works on."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.kept = KeptFolder(path)
        self._authority = Authority(path)

    def init(self, settings: ServerSettings) -> None:
        """Authority, secret and settings; called again, only the settings are new."""
        (self.path / "nodes").mkdir(parents=True, exist_ok=True)
        self.path.chmod(0o700)
        self._authority.make()
        if not self._secret.is_file():
            write_private(self._secret, token_bytes(32))
        write_whole(self.path / "server.toml", tomli_w.dumps(settings.model_dump()))
        self._certificates(settings)

    def settings(self) -> ServerSettings:
        """How nodes reach it.

        Raises:
            SettingsError: there is no server in this folder.
        """
        file = self.path / "server.toml"
        try:
            return ServerSettings.model_validate(tomllib.loads(file.read_text(encoding="utf-8")))
        except FileNotFoundError as e:
            raise SettingsError(f"{self.path}: no server here; make one with `zk0bot server init`") from e
        except (tomllib.TOMLDecodeError, ValidationError) as e:
            raise SettingsError(f"{file}: {e}") from e

    def enroll(self, name: str) -> Kit:
        """A kit for a new node. The server keeps the public half of its key, and no copy of the kit.

        Raises:
            SettingsError: there is a node of that name, or it is no name.
        """
        settings, public = self.settings(), self._public(name)
        if public.exists():
            raise SettingsError(f"{name}: is enrolled already; `zk0bot server revoke {name}` takes it off the list")
        private, line = make_node_key()
        authority = self._authority.certificate.read_text()
        try:
            kit = Kit(name=name, server=settings.address, authority=authority, key=private.decode())
        except ValidationError as e:
            raise SettingsError(f"{name!r} cannot be a node's name: letters, digits, dot, dash and underline") from e
        write_private(public, line + b"\n")
        return kit

    def fingerprint(self, name: str) -> str:
        """What `ssh-keygen -lf` says of a node's key."""
        return fingerprint(self._public(name).read_bytes())

    def revoke(self, name: str) -> None:
        """Take a node off the list; the gateway sees it within a second.

        Raises:
            SettingsError: there is none of that name.
        """
        public = self._public(name)
        try:
            public.replace(public.with_suffix(f".{int(time.time())}.revoked"))
        except FileNotFoundError as e:
            raise SettingsError(f"{name}: is not enrolled; enrolled are {', '.join(self._enrolled()) or 'none'}") from e

    def start(self, outlives: bool = True) -> None:
        """Start SuperLink and gateway, to outlive this process or to end with it, and wait until nodes can come.

        Raises:
            SettingsError: they run already, or there is no server in this folder.
            FederationError: they do not come up.
        """
        settings = self.settings()
        if self.kept.state() is not None:
            raise SettingsError(f"{self.path}: its server is running already")
        self.prepare(settings)
        keeper = self.kept.start(outlives)
        deadline = time.monotonic() + _READY_SECONDS
        try:
            while (fault := self._fault(settings)) is not None:
                if keeper.poll() is not None or time.monotonic() > deadline:
                    raise FederationError(f"{self.path}: the server does not come up: {fault}; see {self.path}/logs")
                time.sleep(_LOOK_SECONDS)
        except BaseException:
            self.kept.stop(_STOP_SECONDS)
            raise

    def prepare(self, settings: ServerSettings) -> None:
        """Certificates that are not due, and what the keeper starts."""
        outer, inner = self._certificates(settings)
        address, ca = f"{LOOPBACK}:{free_port()}", self._authority.certificate
        endpoint = Endpoint(address=address, authority=ca, secret=self._secret)
        write_whole(self.path / "superlink.json", endpoint.model_dump_json())
        gateway = GatewaySettings(
            host=settings.bind,
            port=settings.port,
            certificate=outer[0],
            key=outer[1],
            superlink=endpoint,
            guests=self.path / "nodes",
        )
        write_whole(self.path / "gateway.json", gateway.model_dump_json())
        flower = {"superlink": {"zk0": {"address": address, "root-certificates": str(ca)}}}
        (self.path / "flower").mkdir(exist_ok=True)
        write_whole(self.path / "flower" / "config.toml", tomli_w.dumps(flower))  # for Flower's own command line
        database = None if settings.in_memory else self.path / "superlink.db"
        port = int(address.rpartition(":")[2])
        link = superlink(self.path / "flower", port, (*inner, ca), self._secret, database)
        door = Kept(
            name="gateway",
            command=(sys.executable, "-m", "zk0.federation.gateway", str(self.path / "gateway.json")),
        )
        self.kept.write([link, door])

    def stop(self) -> bool:
        """End it; False where it did not run."""
        return self.kept.stop(_STOP_SECONDS)

    def endpoint(self) -> Endpoint:
        """Where the SuperLink answers, for a session on this machine.

        Raises:
            SettingsError: the server does not run.
        """
        if self.kept.state() is None:
            self.settings()
            raise SettingsError(f"{self.path}: the server does not run; start it with `zk0bot server start`")
        return Endpoint.model_validate_json((self.path / "superlink.json").read_text(encoding="utf-8"))

    def nodes(self) -> tuple[Node, ...]:
        """All enrolled nodes, and what the SuperLink knows of them."""
        seen = {}
        if self.kept.state() is not None:
            with Api(self.endpoint()) as api:
                found = api.call("/v1/control/list-nodes", ListNodesRequest(), ListNodesResponse).nodes_info
            seen = {n.name: n for n in found if n.status != "unregistered"}
        nodes = []
        for name in self._enrolled():
            mark, known = self.fingerprint(name), seen.get(name)
            status, since = (known.status, known.last_activated_at) if known else ("unknown", "")
            nodes.append(Node(name=name, fingerprint=mark, status=status, since=since))
        return tuple(nodes)

    @property
    def _secret(self) -> Path:
        return self.path / "secret"

    def _public(self, name: str) -> Path:
        return self.path / "nodes" / f"{Path(name).name}.pub"

    def _enrolled(self) -> Sequence[str]:
        return sorted(file.stem for file in (self.path / "nodes").glob("*.pub"))

    def _certificates(self, settings: ServerSettings) -> tuple[tuple[Path, Path], tuple[Path, Path]]:
        """Of the gateway, under all its names, and of the SuperLink, which is on loopback alone."""
        hosts = list(dict.fromkeys([*settings.hosts, "localhost", LOOPBACK]))
        return self._authority.sign("gateway", hosts), self._authority.sign("superlink", [LOOPBACK])

    def _fault(self, settings: ServerSettings) -> str | None:
        """Why nodes cannot come yet."""
        try:
            with Api(self.endpoint()) as api:
                found = api.call("/v1/control/list-nodes", ListNodesRequest(), ListNodesResponse).nodes_info
        except (NoAnswer, SettingsError) as e:
            return str(e)
        if missing := set(self._enrolled()) - {n.name for n in found}:
            return f"nodes not registered yet: {', '.join(sorted(missing))}"
        host = settings.bind if settings.bind not in ("0.0.0.0", "::") else LOOPBACK
        try:
            ssl.get_server_certificate((host, settings.port), timeout=2)
        except OSError as e:
            return f"nothing answers at {host}:{settings.port} ({e})"
        return None

"""The folder of a federation's server: its certificates, its enrolled nodes, and the processes that run from it."""

import os
import pwd
import ssl
import sys
import time
import tomllib
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from secrets import token_bytes
from typing import Any, Literal

import tomli_w
from pydantic import Field, ValidationError

from zk0.audit.journal import OperatorAct, OperatorJournal
from zk0.audit.signing_key import SigningKey
from zk0.errors import FederationError, ServerUnavailable, SettingsError
from zk0.federation.flower.api_client import ApiClient, Endpoint
from zk0.federation.flower.private_api import LIST_NODES, UNREGISTERED
from zk0.federation.network.certificate_authority import CertificateAuthority, key_fingerprint, make_node_key
from zk0.federation.network.enrolment_kit import EnrolmentKit
from zk0.federation.network.flower_commands import LOOPBACK_ADDRESS, free_port, superlink_process
from zk0.federation.network.gateway import GatewaySettings
from zk0.federation.network.supervised_folder import ProcessSpec, SupervisedFolder
from zk0.processes import check_port_free
from zk0.records import SUM_NAME, Record
from zk0.settings.dataset_settings import SafeName
from zk0.storage.atomic import atomic_write_bytes, atomic_write_text

_READY_SECONDS = 90.0
_STOP_SECONDS = 90.0
_POLL_SECONDS = 0.2
_GATEWAY_ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": "131072"}
"""glibc gives the TLS buffers of closed connections (256 KiB each) back to the system instead of keeping them."""


class ServerSettings(Record):
    """The server's addresses."""

    hosts: tuple[str, ...] = Field(min_length=1, description="host names and addresses of this machine")
    public: str = Field(default="", description="host:port in enrolment kits; empty: the first host and the port")
    port: int = Field(default=9092, ge=1, le=65535, description="port of the gateway, the only open one")
    bind: str = Field(default=LOOPBACK_ADDRESS, description="address that the gateway listens on")
    in_memory: bool = Field(default=False, description="keep runs and messages in memory; a restart loses them")

    @property
    def address(self) -> str:
        """Address that nodes connect to (host:port)."""
        return self.public or f"{self.hosts[0]}:{self.port}"


class NodeStatus(Record):
    """Status of one enrolled node."""

    name: SafeName
    fingerprint: str
    """Of its public key."""
    status: str
    """online, offline, registered (never connected), or unknown (the server does not run)."""
    since: str = ""


class ServerFolder:
    """The folder that `zk0bot server` works on."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.supervised = SupervisedFolder(path)
        self._authority = CertificateAuthority(path)
        self.operations = OperatorJournal(path / "operations.jsonl")

    def init(self, settings: ServerSettings) -> None:
        """Create authority and secret unless they exist, and write settings and certificates."""
        (self.path / "nodes").mkdir(parents=True, exist_ok=True)
        self.path.chmod(0o700)
        self._authority.create()
        if not self._secret.is_file():
            atomic_write_bytes(self._secret, token_bytes(32), mode=0o600)
        atomic_write_text(self.path / "server.toml", tomli_w.dumps(settings.model_dump()))
        self._certificates(settings)
        self._record("init", settings.model_dump_json())

    def settings(self) -> ServerSettings:
        """Return the server's settings.

        Raises:
            SettingsError: the folder has no server.
        """
        file = self.path / "server.toml"
        try:
            return ServerSettings.model_validate(tomllib.loads(file.read_text(encoding="utf-8")))
        except FileNotFoundError as e:
            raise SettingsError(f"{self.path}: no server here; create one with `zk0bot server init`") from e
        except (tomllib.TOMLDecodeError, ValidationError) as e:
            raise SettingsError(f"{file}: {e}") from e

    def enroll(self, name: str) -> EnrolmentKit:
        """Enroll a node, and return its kit. The server stores the node's public key, and no copy of the kit.

        Raises:
            SettingsError: a node of that name is enrolled, or the name is not valid.
        """
        settings, public = self.settings(), self._public_key(name)
        if public.exists():
            raise SettingsError(f"{name}: is enrolled already; remove it with `zk0bot server revoke {name}`")
        if name == SUM_NAME:
            raise SettingsError(f"{name}: the record of a secure sum has this name; give the node another one")
        private, line = make_node_key()
        ca_certificate = self._authority.certificate.read_text()
        try:
            kit = EnrolmentKit(
                name=name,
                server=settings.address,
                ca_certificate=ca_certificate,
                key=private.decode(),
                ledger_key=self._ledger_public_key(),
            )
        except ValidationError as e:
            raise SettingsError(
                f"{name!r} is not a valid name of a node: letters, digits, dot, hyphen and underscore"
            ) from e
        atomic_write_bytes(public, line + b"\n", mode=0o600)
        self._record("enroll", f"{name} {self.node_fingerprint(name)}")
        return kit

    def node_fingerprint(self, name: str) -> str:
        """Return the fingerprint of a node's public key."""
        return key_fingerprint(self._public_key(name).read_bytes())

    def enrollment_order(self) -> tuple[str, ...]:
        """Return the names that were ever enrolled in the order of their last enrollment, the first one first.

        Raises:
            LedgerError: a line of `operations.jsonl` does not parse.
        """
        newest = dict.fromkeys(act.detail.split()[0] for act in self.operations.newest_first() if act.act == "enroll")
        return tuple(reversed(newest))

    def revoke(self, name: str) -> None:
        """Revoke a node's key; the gateway rejects its requests within a second.

        Raises:
            SettingsError: no node of that name is enrolled.
        """
        public = self._public_key(name)
        try:
            fingerprint = self.node_fingerprint(name)
            public.replace(public.with_suffix(f".{int(time.time())}.revoked"))
        except FileNotFoundError as e:
            raise SettingsError(f"{name}: is not enrolled; enrolled are {', '.join(self._enrolled()) or 'none'}") from e
        self._record("revoke", f"{name} {fingerprint}")

    def start(self, detached: bool = True, processes: Sequence[ProcessSpec] = ()) -> None:
        """Start SuperLink and gateway, and wait until nodes can connect.

        Args:
            detached: the processes outlive this one; else they end with the thread that calls this.
            processes: that run beside them.

        Raises:
            SettingsError: the server runs already, the folder has none, or the gateway's port is in use.
            FederationError: the server does not start.
        """
        settings = self.settings()
        if self.supervised.state() is not None:
            raise SettingsError(f"{self.path}: its server is running already")
        self.prepare(settings, processes)
        supervisor = self.supervised.start(detached)
        deadline = time.monotonic() + _READY_SECONDS
        try:
            while (problem := self._not_ready(settings)) is not None:
                if supervisor.poll() is not None or time.monotonic() > deadline:
                    raise FederationError(f"{self.path}: the server does not start: {problem}; see {self.path}/logs")
                time.sleep(_POLL_SECONDS)
        except BaseException:
            self.supervised.stop(_STOP_SECONDS)
            raise

    def prepare(self, settings: ServerSettings, processes: Sequence[ProcessSpec] = ()) -> None:
        """Renew certificates, and write the settings of gateway and supervisor.

        Args:
            settings: the server's addresses.
            processes: that the supervisor runs beside SuperLink and gateway.

        Raises:
            SettingsError: the gateway's port is in use.
        """
        check_port_free(settings.bind, settings.port, "`zk0bot server init --port`")
        gateway_certificate, superlink_certificate = self._certificates(settings)
        port, ca_certificate = free_port(), self._authority.certificate
        endpoint = Endpoint(address=f"{LOOPBACK_ADDRESS}:{port}", ca_certificate=ca_certificate, secret=self._secret)
        atomic_write_text(self.path / "superlink.json", endpoint.model_dump_json())
        gateway_settings = GatewaySettings(
            host=settings.bind,
            port=settings.port,
            certificate=gateway_certificate[0],
            key=gateway_certificate[1],
            superlink=endpoint,
            nodes_folder=self.path / "nodes",
        )
        atomic_write_text(self.path / "gateway.json", gateway_settings.model_dump_json())
        flower = {"superlink": {"zk0": {"address": endpoint.address, "root-certificates": str(ca_certificate)}}}
        (self.path / "flower").mkdir(exist_ok=True)
        atomic_write_text(self.path / "flower" / "config.toml", tomli_w.dumps(flower))  # for Flower's own command line
        database = None if settings.in_memory else self.path / "superlink.db"
        superlink = superlink_process(
            self.path / "flower", port, (*superlink_certificate, ca_certificate), self._secret, database
        )
        command = (sys.executable, "-m", "zk0.federation.network.gateway", str(self.path / "gateway.json"))
        gateway = ProcessSpec(name="gateway", command=command, environment=_GATEWAY_ENVIRONMENT)
        self.supervised.write_processes([superlink, gateway, *processes])
        self._record("start", settings.model_dump_json())

    def stop(self) -> bool:
        """Stop the server; return False where it does not run."""
        if self.supervised.state() is None:
            return False
        self._record("stop", "")  # first: a server in the foreground then knows that no one else's signal ends it
        return self.supervised.stop(_STOP_SECONDS)

    def record_end(self) -> None:
        """Record that a signal ended the server in the foreground, unless `stop` has sent it."""
        acts = [entry.act for entry in self.operations.read() if entry.act in ("start", "stop")]
        if acts[-1:] != ["stop"]:
            self._record("stop", "by a signal, in the foreground")

    def endpoint(self) -> Endpoint:
        """Return the SuperLink's endpoint, for a session on this machine.

        Raises:
            SettingsError: the server does not run.
        """
        if self.supervised.state() is None:
            self.settings()
            raise SettingsError(f"{self.path}: the server does not run; start it with `zk0bot server start`")
        return Endpoint.model_validate_json((self.path / "superlink.json").read_text(encoding="utf-8"))

    def node_statuses(self) -> tuple[NodeStatus, ...]:
        """Return the status of every enrolled node, as the SuperLink reports it."""
        known = {}
        if self.supervised.state() is not None:
            known = {node.name: node for node in self._superlink_nodes() if node.status != UNREGISTERED}
        nodes = []
        for name in self._enrolled():
            node, fingerprint = known.get(name), self.node_fingerprint(name)
            status, since = (node.status, node.last_activated_at) if node else ("unknown", "")
            nodes.append(NodeStatus(name=name, fingerprint=fingerprint, status=status, since=since))
        return tuple(nodes)

    def _record(self, act: Literal["init", "enroll", "revoke", "start", "stop"], detail: str) -> None:
        """Append what the operator did to the signed journal."""
        try:
            user = pwd.getpwuid(os.getuid()).pw_name
        except KeyError:
            user = f"uid {os.getuid()}"
        at = datetime.now().astimezone().isoformat(timespec="seconds")
        self.operations.append(OperatorAct(at=at, user=user, act=act, detail=detail))

    @property
    def ledger_key(self) -> SigningKey:
        """The key that signs the heads of the sessions' ledgers; nodes know its public part from their kits."""
        return SigningKey(self.path / "ledger.key", self.path / "ledger.pub")

    def _ledger_public_key(self) -> str:
        self.ledger_key.create()
        return self.ledger_key.public_hex()

    @property
    def _secret(self) -> Path:
        return self.path / "secret"

    def _public_key(self, name: str) -> Path:
        return self.path / "nodes" / f"{Path(name).name}.pub"

    def _enrolled(self) -> Sequence[str]:
        return sorted(file.stem for file in (self.path / "nodes").glob("*.pub"))

    def _superlink_nodes(self) -> Sequence[Any]:
        with ApiClient(self.endpoint()) as api:
            return list(api.call(LIST_NODES).nodes_info)

    def _certificates(self, settings: ServerSettings) -> tuple[tuple[Path, Path], tuple[Path, Path]]:
        """Return certificate and key of the gateway, for all its names, and of the SuperLink, for loopback."""
        hosts = list(dict.fromkeys([*settings.hosts, "localhost", LOOPBACK_ADDRESS]))
        gateway = self._authority.server_certificate("gateway", hosts)
        return gateway, self._authority.server_certificate("superlink", [LOOPBACK_ADDRESS])

    def _not_ready(self, settings: ServerSettings) -> str | None:
        """Return why nodes cannot connect yet; None once they can."""
        try:
            found = self._superlink_nodes()
        except (ServerUnavailable, SettingsError) as e:
            return str(e)
        if missing := set(self._enrolled()) - {node.name for node in found}:
            return f"nodes not registered yet: {', '.join(sorted(missing))}"
        host = settings.bind if settings.bind not in ("0.0.0.0", "::") else LOOPBACK_ADDRESS
        try:
            ssl.get_server_certificate((host, settings.port), timeout=2)
        except OSError as e:
            return f"nothing answers at {host}:{settings.port} ({e})"
        return None

"""The folder of a node: its enrolment kit, its private files, and the processes that run from it."""

import sys
import tomllib
from pathlib import Path
from secrets import token_bytes

from pydantic import ValidationError

from zk0.audit.journal import SentJournal
from zk0.audit.signing_key import SigningKey
from zk0.errors import SettingsError
from zk0.federation.flower.api_client import Endpoint
from zk0.federation.network.agent import AgentSettings, ended_sessions
from zk0.federation.network.enrolment_kit import EnrolmentKit
from zk0.federation.network.flower_commands import LOOPBACK_ADDRESS, free_port, supernode_process
from zk0.federation.network.hours import DailyHours
from zk0.federation.network.supervised_folder import ProcessSpec, SupervisedFolder
from zk0.federation.protocol.sent_log import SENT_JOURNAL
from zk0.settings.dataset_settings import ClientSettings
from zk0.settings.loading import faults_by_field
from zk0.settings.node_limits import NodeLimits
from zk0.storage.atomic import atomic_write_bytes, atomic_write_text

_STOP_SECONDS = 60.0


class NodeFolder:
    """The folder that `zk0bot client` works on."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.supervised = SupervisedFolder(path)

    @property
    def scratch(self) -> Path:
        """Folder of the client's log, its updates, and the journal of its answers."""
        return self.path / "scratch"

    def public_key(self) -> str:
        """Return the public key with which the node signs its journal, 64 hex digits; it is created where missing."""
        journal = SentJournal(self.scratch / SENT_JOURNAL)
        key = SigningKey(journal.private_key, journal.public_key)
        key.create()
        return key.public_hex()

    def install_kit(self, kit: EnrolmentKit) -> None:
        """Store an enrolment kit here; the processes of this folder then run as its node.

        Raises:
            SettingsError: the folder belongs to another node.
        """
        file = self.path / "kit.json"
        if file.is_file() and (name := EnrolmentKit.read(file).name) != kit.name:
            raise SettingsError(f"{self.path}: belongs to the node {name}, not to {kit.name}; choose another --home")
        self.path.mkdir(parents=True, exist_ok=True)
        self.path.chmod(0o700)
        kit.write(file)
        atomic_write_bytes(self.path / "node.key", kit.key.encode(), mode=0o600)
        atomic_write_bytes(self.path / "ca.crt", kit.ca_certificate.encode(), mode=0o600)

    def read_kit(self) -> EnrolmentKit:
        """Return the enrolment kit of this node.

        Raises:
            SettingsError: the folder has no kit.
        """
        file = self.path / "kit.json"
        if not file.is_file():
            raise SettingsError(
                f"{self.path}: no node here; the first start needs --kit FILE (on the server: zk0bot server enroll)"
            )
        return EnrolmentKit.read(file)

    def install_limits(self, file: Path) -> None:
        """Store the node's own limits here, after a check.

        Raises:
            SettingsError: a limit does not exist or has no valid value.
        """
        text = file.read_text(encoding="utf-8")
        _parse_limits(text, file)
        atomic_write_text(self.path / "limits.toml", text)

    def read_limits(self) -> NodeLimits:
        """Return the node's limits: those of `limits.toml`, and the defaults of all others.

        Raises:
            SettingsError: a limit does not exist or has no valid value.
        """
        file = self.path / "limits.toml"
        return _parse_limits(file.read_text(encoding="utf-8"), file) if file.is_file() else NodeLimits()

    def start(
        self,
        client: ClientSettings,
        cache: Path,
        detached: bool = True,
        hours: DailyHours | None = None,
        max_sessions: int | None = None,
    ) -> None:
        """Start SuperNode and agent.

        Args:
            client: its dataset and settings.
            cache: folder of the feature cache.
            detached: the processes outlive this one; else they end with the thread that calls this.
            hours: outside them neither process runs, and the server sees the node as offline.
            max_sessions: the node stops after so many sessions have ended; None: it stays.

        Raises:
            SettingsError: the node runs already.
        """
        if self.supervised.state() is not None:
            raise SettingsError(f"{self.path}: its node is running already")
        self.prepare(client, cache, hours, max_sessions)
        self.supervised.start(detached)

    def prepare(
        self,
        client: ClientSettings,
        cache: Path,
        hours: DailyHours | None = None,
        max_sessions: int | None = None,
    ) -> None:
        """Write the settings of agent and supervisor."""
        secret, port = self.path / "secret", free_port()
        atomic_write_bytes(secret, token_bytes(32), mode=0o600)
        endpoint = Endpoint(address=f"{LOOPBACK_ADDRESS}:{port}", secret=secret)
        settings = AgentSettings(
            client=client,
            scratch=self.scratch,
            cache=cache,
            supernode=endpoint,
            limits=self.read_limits(),
            ledger_key=self.read_kit().ledger_key,
            max_sessions=max_sessions,
            ended_before=ended_sessions(self.scratch),
        )
        atomic_write_text(self.path / "agent.json", settings.model_dump_json(indent=2))
        ca_certificate, key = self.path / "ca.crt", self.path / "node.key"
        supernode = supernode_process(self.path / "flower", self.read_kit().server, port, ca_certificate, key, secret)
        command = (sys.executable, "-m", "zk0.federation.network.agent", str(self.path))
        agent = ProcessSpec(name="agent", command=command)
        self.supervised.write_processes([one.model_copy(update={"hours": hours}) for one in (supernode, agent)])

    def stop(self) -> bool:
        """Stop the node; return False where it does not run."""
        return self.supervised.stop(_STOP_SECONDS)


def _parse_limits(text: str, file: Path) -> NodeLimits:
    try:
        return NodeLimits.model_validate(tomllib.loads(text))
    except ValidationError as e:
        raise SettingsError(f"{file}: {faults_by_field(e)}; expected limits that docs/node.md lists") from e
    except (ValueError, RecursionError) as e:
        raise SettingsError(f"{file}: not a TOML file ({e})") from e

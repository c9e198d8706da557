"""Ray clusters whose machines share no folder: weights are sent as Ray objects, and files are those of each machine.

Requests and answers name weights by the key of an object in `ObjectTable`, a Ray actor of the session. Ray copies an
object to each machine once; there it becomes a file, which all clients of that machine read. Each machine has scratch
folders for all clients in its own `cache_dir`, because Ray trains a client wherever a CPU is free.
"""

import json
import os
import shutil
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import ray
from flwr.app import ConfigRecord, Message, RecordDict
from numpy.typing import NDArray
from ray.exceptions import RayError

from zk0.errors import FederationError
from zk0.federation.flower.flower_message import WEIGHTS_PATH
from zk0.federation.protocol.answers import refusal
from zk0.storage.atomic import atomic_path

WEIGHTS_OBJECT = "weights-object"
"""Key in a message's ConfigRecord that takes the place of WEIGHTS_PATH: the key of an object."""
_KEPT_FILES = 3
"""Received weights that stay on a machine, beside those that its clients train from."""
_LEFT_OVER_SECONDS = 86_400.0
_FETCH_SECONDS = 3600.0


class ClusterSession(NamedTuple):
    """What the actors of a cluster need to know of a session."""

    table: str
    """Name of the session's ObjectTable."""
    session: str
    """Name of the session's folder; part of the folders on each machine."""


class ObjectTable:
    """Ray actor that holds references to the objects of a session, so that Ray keeps them until they are dropped."""

    def __init__(self, nodes: str) -> None:
        self._nodes = nodes
        self._objects: dict[str, Sequence[Any]] = {}
        self._ended: set[str] = set()

    def nodes(self) -> str:
        """Return the configurations of all virtual nodes as JSON."""
        return self._nodes

    def put(self, key: str, reference: Sequence[Any]) -> None:
        """Keep an object, unless its key has been dropped: then its round is over."""
        if key not in self._ended:
            self._objects[key] = reference

    def get(self, key: str) -> Sequence[Any] | None:
        """Return the reference in a list, so that Ray passes it on instead of the object; None: there is none."""
        return self._objects.get(key)

    def drop(self, keys: Sequence[str], forever: bool) -> None:
        """Let go of objects; `forever`: keep none that arrives under such a key later."""
        for key in keys:
            self._objects.pop(key, None)
        self._ended.update(keys if forever else ())


class SessionObjects:
    """The session's side: weights that are sent become objects, and objects that arrive become files.

    Args:
        nodes: configurations of the virtual nodes.
        session: name of the session's folder.
        inbox: folder for weights that arrive.
    """

    def __init__(self, nodes: Sequence[Mapping[str, Any]], session: str, inbox: Path) -> None:
        self.cluster = ClusterSession(f"zk0-{session}-{time.time_ns():x}", session)
        self._inbox = inbox
        self._sent: dict[Path, str] = {}
        self._needed: dict[str, str] = {}
        """Key of the object that each open message names."""
        actor = ray.remote(num_cpus=0)(ObjectTable).options(name=self.cluster.table)
        self._table = actor.remote(json.dumps(list(nodes)))

    def outgoing(self, content: RecordDict) -> RecordDict:
        """Return the content of a request with an object in place of the path of a file."""
        found = RecordDict(dict(content.items()))
        for name, record in content.config_records.items():
            if WEIGHTS_PATH in record:
                values = {key: value for key, value in record.items() if key != WEIGHTS_PATH}
                found[name] = ConfigRecord({**values, WEIGHTS_OBJECT: self._object_of(Path(str(record[WEIGHTS_PATH])))})
        return found

    def incoming(self, message: Message) -> Message:
        """Return the reply, its weights in a file of the inbox; a refusal where they are lost."""
        if message.has_error() or not (key := _object_key(message.content)):
            return message
        target = self._inbox / f"{key}.safetensors"
        try:
            values = _fetched(self._table, key)
        except FederationError as e:
            message.content = refusal(str(e), passing=True)
            return message
        _write(values, target)
        self._table.drop.remote([key], True)
        _replace_object(message.content, target)
        return message

    def keep(self, messages: Mapping[str, Message]) -> None:
        """Keep the objects that messages name until these are discarded, by message id."""
        self._needed |= {one: key for one, message in messages.items() if (key := _object_key(message.content))}

    def discard(self, ids: Sequence[str]) -> None:
        """Drop what no other message needs and the files that have arrived; later answers to these are not kept."""
        answers = [_answer_key(one) for one in ids]
        dropped = {self._needed.pop(one) for one in ids if one in self._needed} - set(self._needed.values())
        self._table.drop.remote(answers, True)
        self._table.drop.remote(list(dropped), False)
        self._sent = {path: key for path, key in self._sent.items() if key not in dropped}
        for key in answers:
            (self._inbox / f"{key}.safetensors").unlink(missing_ok=True)

    def _object_of(self, path: Path) -> str:
        """Return the key of a file's object; requests with the same weights share it."""
        if path not in self._sent:
            state = path.stat()
            key = f"sent-{state.st_ino:x}-{state.st_size:x}-{state.st_mtime_ns:x}"
            ray.get(self._table.put.remote(key, [ray.put(np.fromfile(path, np.uint8))]))
            self._sent[path] = key
        return self._sent[path]


class MachineFiles:
    """An actor's side: the files of a session on its machine.

    Args:
        cluster: of the session.
        connection: to the session; when it closes, received weights and stored updates are deleted.
    """

    def __init__(self, cluster: ClusterSession, connection: Connection) -> None:
        self._table = ray.get_actor(cluster.table)
        nodes = json.loads(ray.get(self._table.nodes.remote()))
        cache = Path(nodes[0]["cache"])
        self.folder = cache / "ray" / cluster.session
        self._weights = self.folder / "weights"
        self._nodes_file = self.folder / "nodes.json"
        self._weights.mkdir(parents=True, exist_ok=True)
        _remove_left_over(cache / "ray", self.folder)
        with atomic_path(self._nodes_file, durable=False) as temporary:
            temporary.write_text(json.dumps([self._on_this_machine(node) for node in nodes]), encoding="utf-8")
        threading.Thread(target=self._remove_at_end, args=(connection,), daemon=True, name="zk0-ray-files").start()

    def localize(self, message: Message) -> Message:
        """Return the request as the clients of this machine read it: weights and configurations in its own files."""
        config = message.content.config_records["config"]
        config["nodes"] = str(self._nodes_file)
        if key := _object_key(message.content):
            _replace_object(message.content, self._in_use(key))
        return message

    def share(self, request: Message, reply: Message) -> Message:
        """Return the reply with its weights as an object."""
        for record in {} if reply.has_error() else reply.content.config_records.values():
            if WEIGHTS_PATH in record:
                key = _answer_key(request.metadata.message_id)
                values = np.fromfile(Path(str(record.pop(WEIGHTS_PATH))), np.uint8)
                ray.get(self._table.put.remote(key, [ray.put(values)]))
                record[WEIGHTS_OBJECT] = key
        return reply

    def _on_this_machine(self, node: Mapping[str, Any]) -> dict[str, Any]:
        """Return a node's configuration without the folders of the session's machine."""
        name = Path(str(node["scratch"])).name
        kept = {key: value for key, value in node.items() if key not in ("session_log", "videos")}
        return {**kept, "scratch": str(self.folder / "clients" / name)}

    def _file_of(self, key: str) -> Path:
        target = self._weights / f"{key}.safetensors"
        if not target.is_file():
            _write(_fetched(self._table, key), target)
            newest = sorted(self._weights.glob("*.safetensors"), key=lambda file: file.stat().st_mtime_ns)
            for file in newest[:-_KEPT_FILES]:
                file.unlink(missing_ok=True)
        return target

    def _in_use(self, key: str) -> Path:
        """Return a link to an object's file, which stays until this actor's next request: training may take long."""
        target = self._weights / "in-use" / f"{os.getpid()}.safetensors"
        target.parent.mkdir(exist_ok=True)
        target.unlink(missing_ok=True)
        while not target.exists():
            with suppress(FileNotFoundError):  # another actor has removed the file, for newer ones
                os.link(self._file_of(key), target)
        return target

    def _remove_at_end(self, connection: Connection) -> None:
        wait([connection])
        for folder in (self._weights, *self.folder.glob("clients/*/sessions")):
            shutil.rmtree(folder, ignore_errors=True)


def connect_to_cluster(address: str) -> None:
    """Connect this process to a running Ray cluster.

    Raises:
        FederationError: the cluster does not answer.
    """
    try:
        ray.init(address=address, log_to_driver=False, include_dashboard=False)
    except (ConnectionError, RuntimeError, ValueError, RayError) as e:
        raise FederationError(
            f"federation.ray_address {address}: no Ray cluster answers ({e}); expected the address that "
            "`ray start --head` prints, HOST:PORT"
        ) from e


def own_address(cluster: str) -> str:
    """Return this machine's address on the network of a cluster (HOST:PORT), by which its actors can reach it.

    >>> own_address("127.0.0.1:6379")
    '127.0.0.1'
    """
    host, _, port = cluster.rpartition(":")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((host, int(port)))  # sends nothing
        return str(probe.getsockname()[0])


def _answer_key(message_id: str) -> str:
    return f"answer-{message_id}"


def _object_key(content: RecordDict) -> str:
    found = [str(record[WEIGHTS_OBJECT]) for record in content.config_records.values() if WEIGHTS_OBJECT in record]
    return found[0] if found else ""


def _replace_object(content: RecordDict, path: Path) -> None:
    for record in content.config_records.values():
        if record.pop(WEIGHTS_OBJECT, None) is not None:
            record[WEIGHTS_PATH] = str(path)


def _fetched(table: Any, key: str) -> NDArray[np.uint8]:
    """Return the values of an object, in Ray's shared memory.

    Raises:
        FederationError: it is not there any more.
    """
    try:
        found = ray.get(table.get.remote(key), timeout=_FETCH_SECONDS)
        if found is None:
            raise FederationError("the weights of this request were dropped: its round is over")
        values: NDArray[np.uint8] = ray.get(found[0], timeout=_FETCH_SECONDS)
    except RayError as e:
        raise FederationError(f"weights were lost with a machine or process of the Ray cluster ({e})") from e
    return values


def _write(values: NDArray[np.uint8], target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(target, durable=False) as temporary, temporary.open("wb") as file:
        file.write(values.data)


def _remove_left_over(folder: Path, own: Path) -> None:
    """Remove weights that sessions left on this machine when its power failed, for example."""
    for weights in folder.glob("*/weights"):
        if weights.parent != own and time.time() - weights.stat().st_mtime > _LEFT_OVER_SECONDS:
            shutil.rmtree(weights, ignore_errors=True)

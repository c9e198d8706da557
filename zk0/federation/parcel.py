"""Messages as Flower's objects: weights leave a machine as bytes read from their file, and arrive as a file.

On one machine a message names weights by path (`weights-path`). Between machines that path is worth nothing, and is
never believed: `packed` puts the file's bytes in its place, five megabytes at a time, and `unpacked` writes what
arrives to a file of its own. Memory stays that of one piece, whatever the model's size.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.app.message.arraychunk import ArrayChunk
from flwr.common.constant import FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE
from flwr.common.serde import message_to_proto
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_body,
    get_object_head_values_from_object_content,
    get_object_id,
    get_object_tree,
    no_object_id_recompute,
)
from google.protobuf.message import DecodeError

from zk0.errors import FederationError
from zk0.federation.sent import WEIGHTS_PATH

_WEIGHTS = "weights"
_STYPE = "zk0.safetensors"
_DEPTH = 3
"""Message, RecordDict, ArrayRecord, Array."""
_CLASSES = {c.__qualname__: c for c in (ArrayRecord, ConfigRecord, MetricRecord, RecordDict, Message)}

Fetch = Callable[[str], bytes]


@dataclass(frozen=True)
class Parcel:
    """A message in the shape in which Flower's APIs take it: its head, the tree of its objects, and their bytes."""

    head: Any
    tree: Any
    objects: dict[str, Any]
    """By id; each reads its bytes when `deflate` is called."""


class _FilePiece(ArrayChunk):
    """A piece of a file that is read when it is needed."""

    def __init__(self, path: Path, start: int, size: int) -> None:
        self._path, self._start, self._size = path, start, size
        self._id = str(ArrayChunk(self._bytes()).object_id)

    @property
    def object_id(self) -> str:
        return self._id

    def deflate(self) -> bytes:
        return bytes(ArrayChunk(self._bytes()).deflate())

    def _bytes(self) -> memoryview:
        with self._path.open("rb") as file:
            file.seek(self._start)
            return memoryview(file.read(self._size))


def file_record(path: Path) -> ArrayRecord:
    """A file as one array of bytes; only its pieces' digests are in memory."""
    size, step = path.stat().st_size, int(FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE)
    pieces = [_FilePiece(path, start, min(step, size - start)) for start in range(0, size, step)]
    array = Array("uint8", (size,), _STYPE, b"")
    array.__dict__["_chunks"] = [(piece.object_id, piece) for piece in pieces]  # what Array.slice_array keeps
    record = ArrayRecord()
    record["file"] = array  # its constructor would make a copy, without the pieces
    return record


def packed(content: RecordDict, record: Callable[[Path], ArrayRecord] = file_record) -> RecordDict:
    """The same content with bytes in place of a path."""
    found = RecordDict()
    for name, value in content.items():
        if isinstance(value, ConfigRecord) and WEIGHTS_PATH in value:
            found[_WEIGHTS] = record(Path(str(value[WEIGHTS_PATH])))
            value = ConfigRecord({key: v for key, v in value.items() if key != WEIGHTS_PATH})
        found[name] = value
    return found


def parcel(message: Message) -> Parcel:
    """A message that is ready to be sent; from now on it has an id, the digest of all that it says."""
    with no_object_id_recompute():
        message.metadata.__dict__["_message_id"] = message.object_id
        tree, objects = get_object_tree(message), get_all_nested_objects(message)
        return Parcel(head=message_to_proto(remove_content_from_message(message)), tree=tree, objects=objects)


def unpacked(tree: Any, fetch: Fetch, target: Path) -> Message:
    """A message from its objects; weights that come with it are written to `target`, whole or not at all.

    Raises:
        FederationError: it is not a message of ours.
    """
    half = target.with_name(f".{target.name}.half")
    half.parent.mkdir(parents=True, exist_ok=True)
    try:
        with half.open("wb") as file:
            message = _inflated(tree.object_id, fetch, file)
            size = file.tell()
        _settle(message, target if size else None)
        if size:
            half.replace(target)
    except (ValueError, LookupError, TypeError, AttributeError, DecodeError) as e:
        raise FederationError(f"a message that zk0 does not understand ({type(e).__name__}: {e})") from e
    finally:
        half.unlink(missing_ok=True)
    message.metadata.__dict__["_message_id"] = tree.object_id
    return message


def _settle(message: Message, weights: Path | None) -> None:
    """The content names the file that has just been written, and no other."""
    if message.has_error():
        return
    content = RecordDict({name: value for name, value in message.content.items() if name != _WEIGHTS})
    for value in content.config_records.values():
        value.pop(WEIGHTS_PATH, None)
        if weights is not None:
            value[WEIGHTS_PATH] = str(weights)
    message.content = content


def _inflated(object_id: str, fetch: Fetch, file: BinaryIO, depth: int = 0) -> Any:
    content = _checked(object_id, fetch)
    kind, children, _ = get_object_head_values_from_object_content(content)
    if kind == Array.__qualname__:
        return _written(content, children, fetch, file)
    if kind not in _CLASSES or depth > _DEPTH:
        raise ValueError(f"an object of type {kind[:40]} at depth {depth}")
    return _CLASSES[kind].inflate(content, {child: _inflated(child, fetch, file, depth + 1) for child in children})


def _checked(object_id: str, fetch: Fetch) -> bytes:
    content = fetch(object_id)
    if (found := get_object_id(content)) != object_id:
        raise ValueError(f"an object with digest {found[:12]}, expected {object_id[:12]}")
    return content


def _written(content: bytes, children: list[str], fetch: Fetch, file: BinaryIO) -> Array:
    """An array whose bytes are in the file instead of in memory."""
    about = json.loads(get_object_body(content, Array))
    if about["stype"] != _STYPE or file.tell():
        raise ValueError(f"an array of {about['stype']}, expected one of {_STYPE}")
    for piece in _pieces(children, about["arraychunk_ids"], fetch):
        file.write(piece)
    return Array(str(about["dtype"]), tuple(about["shape"]), _STYPE, b"")


def _pieces(children: list[str], order: list[int], fetch: Fetch) -> Iterator[bytes]:
    for index in order:
        yield get_object_body(_checked(children[index], fetch), ArrayChunk)

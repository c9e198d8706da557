"""Conversion between zk0's messages and Flower's objects: weights are sent from a file and arrive as a file.

On one machine a message names its weights by path (WEIGHTS_PATH). Between machines a path is useless, and a path from
another machine is never used: `embed_weights` replaces it by the file's bytes in chunks of 5 MB, and `from_flower`
writes what arrives to a file of its own. So memory holds one chunk, whatever the size of the model.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from google.protobuf.message import DecodeError

from zk0.errors import FederationError
from zk0.federation.flower.private_api import (
    MAX_CHUNK_BYTES,
    ArrayChunk,
    get_all_nested_objects,
    get_object_body,
    get_object_id,
    get_object_tree,
    message_to_proto,
    no_object_id_recompute,
    object_type_and_children,
    remove_content_from_message,
    set_array_chunks,
    set_message_id,
)
from zk0.storage.atomic import atomic_path

WEIGHTS_PATH = "weights-path"
"""Key in a message's ConfigRecord: path of the weights file that belongs to the message."""
_WEIGHTS = "weights"
_STYPE = "zk0.safetensors"
_MAX_DEPTH = 3
"""Message, RecordDict, ArrayRecord, Array."""
_MAX_OBJECTS, _MAX_OBJECT_BYTES = 32, 24 << 20
"""Of one message, its chunks left out."""
_MAX_LIST_BYTES = 1 << 20
"""Of an object that only lists others, which is JSON: one of 1 MiB lists the chunks of 60 GB."""
_CLASSES = {c.__qualname__: c for c in (ArrayRecord, ConfigRecord, MetricRecord, RecordDict, Message)}

FetchObject = Callable[[str], bytes]
"""Returns the bytes of an object by its id."""


class SerializedMessage(NamedTuple):
    """A message in the form in which Flower's APIs take it."""

    proto: Any
    """Protobuf message without the content."""
    object_tree: Any
    objects: dict[str, Any]
    """The message's objects by id; `deflate` of one returns its bytes."""


class _FileChunk(ArrayChunk):
    """A chunk of a file that is read when it is needed."""

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
    """Return a file as one array of bytes; memory holds the digests of its chunks only."""
    size = path.stat().st_size
    starts = range(0, size, MAX_CHUNK_BYTES)
    array = Array("uint8", (size,), _STYPE, b"")
    set_array_chunks(array, [_FileChunk(path, start, min(MAX_CHUNK_BYTES, size - start)) for start in starts])
    record = ArrayRecord()
    record["file"] = array  # the constructor of ArrayRecord would copy the array without its chunks
    return record


def embed_weights(content: RecordDict, record: Callable[[Path], ArrayRecord] = file_record) -> RecordDict:
    """Return the content with the bytes of the weights file in place of its path.

    `record` reads the file; messages that share a record share its chunks on the wire.
    """
    found = RecordDict()
    for name, value in content.items():
        if isinstance(value, ConfigRecord) and WEIGHTS_PATH in value:
            found[_WEIGHTS] = record(Path(str(value[WEIGHTS_PATH])))
            value = ConfigRecord({key: v for key, v in value.items() if key != WEIGHTS_PATH})
        found[name] = value
    return found


def to_flower(message: Message) -> SerializedMessage:
    """Serialize a message for Flower's APIs; its id becomes the digest of its content."""
    with no_object_id_recompute():
        set_message_id(message, message.object_id)
        tree, objects = get_object_tree(message), get_all_nested_objects(message)
        return SerializedMessage(message_to_proto(remove_content_from_message(message)), tree, objects)


def has_too_many_objects(object_tree: Any, max_bytes: int) -> bool:
    """Return whether a message has more objects than one with weights of this size."""
    most, left = _MAX_OBJECTS + 1 + max_bytes // MAX_CHUNK_BYTES, [object_tree]
    found = 0
    while left and found <= most:
        found += 1
        left.extend(left.pop().children)
    return found > most


def from_flower(object_tree: Any, fetch_object: FetchObject, target: Path, max_bytes: int | None = None) -> Message:
    """Rebuild a message from its objects; weights that it carries are written to `target`, completely or not at all.

    No more is written than the array's shape says, and each chunk is fetched once, however often it is listed.

    Args:
        object_tree: of the message.
        fetch_object: returns an object by its id.
        target: file for the weights.
        max_bytes: largest size of the weights; None: what the shape says.

    Raises:
        FederationError: the message is not one of zk0.
    """
    try:
        with atomic_path(target, durable=False) as temporary:
            with temporary.open("w+b") as file:
                message = _Inflater(fetch_object, file, max_bytes).inflate(object_tree.object_id)
                size = file.tell()
            if size == 0:
                temporary.unlink()  # the message carries no weights
            _set_weights_path(message, target if size else None)
    except (ValueError, LookupError, TypeError, AttributeError, DecodeError, RecursionError) as e:
        raise FederationError(f"a message that zk0 does not understand ({type(e).__name__}: {e})") from e
    set_message_id(message, object_tree.object_id)
    return message


def _set_weights_path(message: Message, weights: Path | None) -> None:
    """Make the content name the file that was just written, and no other."""
    if message.has_error():
        return
    content = RecordDict({name: value for name, value in message.content.items() if name != _WEIGHTS})
    for value in content.config_records.values():
        value.pop(WEIGHTS_PATH, None)
        if weights is not None:
            value[WEIGHTS_PATH] = str(weights)
    message.content = content


class _Inflater:
    """Rebuilds one message, and writes the array in it to a file."""

    def __init__(self, fetch_object: FetchObject, file: BinaryIO, max_bytes: int | None) -> None:
        self._fetch_object, self._file, self._max_bytes = fetch_object, file, max_bytes
        self._objects = self._object_bytes = 0

    def inflate(self, object_id: str, depth: int = 0) -> Any:
        content = self._fetch_checked(object_id)
        self._objects, self._object_bytes = self._objects + 1, self._object_bytes + len(content)
        if self._objects > _MAX_OBJECTS or self._object_bytes > _MAX_OBJECT_BYTES:
            raise ValueError(f"more than {_MAX_OBJECTS} objects or {_MAX_OBJECT_BYTES} bytes besides the weights")
        object_type, children = object_type_and_children(content)
        if object_type != ConfigRecord.__qualname__ and len(content) > _MAX_LIST_BYTES:
            raise ValueError(f"an object of type {object_type[:40]} with {len(content)} bytes")
        if object_type == Array.__qualname__:
            return self._write_array(content, children)
        if object_type not in _CLASSES or depth > _MAX_DEPTH:
            raise ValueError(f"an object of type {object_type[:40]} at depth {depth}")
        if len(children) > _MAX_OBJECTS:
            raise ValueError(f"an object with {len(children)} children")
        inflated = {child: self.inflate(child, depth + 1) for child in children}
        return _CLASSES[object_type].inflate(content, inflated)

    def _fetch_checked(self, object_id: str) -> bytes:
        content = self._fetch_object(object_id)
        if (found := get_object_id(content)) != object_id:
            raise ValueError(f"an object with digest {found[:12]}, expected {object_id[:12]}")
        return content

    def _write_array(self, content: bytes, children: list[str]) -> Array:
        """Write an array's bytes to the file, and return the array without them."""
        fields = json.loads(get_object_body(content, Array))
        if fields["stype"] != _STYPE or self._file.tell():
            raise ValueError(f"an array of {str(fields['stype'])[:40]}, expected one of {_STYPE}")
        (size,) = fields["shape"]
        if type(size) is not int or size < 0 or (self._max_bytes is not None and size > self._max_bytes):
            raise ValueError(f"weights of {str(size)[:20]} bytes, expected at most {self._max_bytes}")
        self._write_chunks(children, fields["arraychunk_ids"], size)
        if (found := self._file.tell()) != size:
            raise ValueError(f"weights of {found} bytes, expected the {size} that they declare")
        return Array(str(fields["dtype"]), (size,), _STYPE, b"")

    def _write_chunks(self, children: list[str], order: list[int], size: int) -> None:
        written: dict[str, tuple[int, int]] = {}
        for index in order:
            object_id = children[index]
            if object_id in written:
                chunk = self._read_back(*written[object_id])
            else:
                chunk = get_object_body(self._fetch_checked(object_id), ArrayChunk)
            if not chunk or self._file.tell() + len(chunk) > size:
                raise ValueError(f"chunks of more than the {size} bytes that the weights declare, or an empty one")
            written.setdefault(object_id, (self._file.tell(), len(chunk)))
            self._file.write(chunk)

    def _read_back(self, start: int, length: int) -> bytes:
        self._file.seek(start)
        chunk = self._file.read(length)
        self._file.seek(0, 2)
        return chunk

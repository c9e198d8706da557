"""Weights between machines: sent and received in chunks; a path in a message of another machine is never used."""

import os
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, Metadata, RecordDict
from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.inflatable.inflatable_object import get_object_id

from zk0.errors import FederationError
from zk0.federation.flower.flower_message import SerializedMessage, embed_weights, file_record, from_flower, to_flower
from zk0.federation.flower.private_api import ArrayChunk, set_array_chunks

CHUNK_BYTES = 5_242_880


def message(content: Any) -> Message:
    return Message(content=content, metadata=Metadata(1, "m", 1, 5, "", "3", time.time(), 60.0, "train"))


def request_with(path: Path) -> RecordDict:
    return RecordDict({"config": ConfigRecord({"plan": "{}", "weights-path": str(path)})})


def received(sent: SerializedMessage, target: Path) -> Message:
    return from_flower(sent.object_tree, lambda one: sent.objects[one].deflate(), target)


@pytest.mark.parametrize("size", [1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES + 7])
def test_a_file_arrives_as_it_left(size: int, tmp_path: Path) -> None:
    source, target = tmp_path / "sent", tmp_path / "there" / "arrived"
    source.write_bytes(os.urandom(size))
    found = received(to_flower(message(embed_weights(request_with(source)))), target)
    assert target.read_bytes() == source.read_bytes()
    assert dict(found.content["config"]) == {"plan": "{}", "weights-path": str(target)}
    assert list(found.content) == ["config"]
    assert [p.name for p in target.parent.iterdir()] == ["arrived"]


def test_equal_chunks_are_sent_once_and_arrive_in_order(tmp_path: Path) -> None:
    source, zeros, other = tmp_path / "sent", bytes(CHUNK_BYTES), os.urandom(CHUNK_BYTES)
    source.write_bytes(zeros + other + zeros + other[:9])
    sent = to_flower(message(embed_weights(request_with(source))))
    assert len([one for one in sent.objects.values() if type(one).__name__ == "_FileChunk"]) == 3
    received(sent, tmp_path / "arrived")
    assert (tmp_path / "arrived").read_bytes() == source.read_bytes()


@pytest.mark.parametrize("declared", [1, 300 * 10_000], ids=["a byte", "all of it"])
def test_a_chunk_that_is_listed_many_times_writes_no_more_than_allowed(declared: int, tmp_path: Path) -> None:
    """Ten kilobytes on the wire, three megabytes on the disk: more than the shape says, or than the receiver allows."""
    chunk = ArrayChunk(memoryview(bytes(10_000)))
    array = Array("uint8", (declared,), "zk0.safetensors", b"")
    set_array_chunks(array, [chunk] * 300)
    record = ArrayRecord()
    record["file"] = array
    sent = to_flower(message(RecordDict({"weights": record, "config": ConfigRecord({"plan": "{}"})})))
    fetched: list[str] = []

    def fetch(object_id: str) -> bytes:
        fetched.append(object_id)
        return bytes(sent.objects[object_id].deflate())

    with pytest.raises(FederationError, match="weights"):
        from_flower(sent.object_tree, fetch, tmp_path / "arrived", max_bytes=20_000)
    assert len(fetched) == len(set(fetched))
    assert list(tmp_path.iterdir()) == []


def test_memory_holds_a_few_chunks(tmp_path: Path) -> None:
    source = tmp_path / "sent"
    with source.open("wb") as file:
        for _ in range(20):
            file.write(os.urandom(CHUNK_BYTES))
    tracemalloc.start()
    received(to_flower(message(embed_weights(request_with(source)))), tmp_path / "arrived")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 6 * CHUNK_BYTES


def test_messages_with_the_same_weights_share_their_chunks(tmp_path: Path) -> None:
    source = tmp_path / "sent"
    source.write_bytes(os.urandom(2 * CHUNK_BYTES))
    record = file_record(source)
    one, two = (to_flower(message(embed_weights(request_with(source), lambda _: record))) for _ in range(2))
    assert len(one.objects) == len(two.objects) == 7
    assert len(one.objects.keys() & two.objects.keys()) == 6  # all but the message's head


def test_a_path_of_another_machine_is_never_used(tmp_path: Path) -> None:
    forged = RecordDict({"config": ConfigRecord({"plan": "{}", "weights-path": "/etc/passwd"})})
    found = received(to_flower(message(forged)), tmp_path / "arrived")
    assert dict(found.content["config"]) == {"plan": "{}"}
    assert list(tmp_path.iterdir()) == []


def test_an_error_arrives_as_one(tmp_path: Path) -> None:
    failed = Message(Error(8, "its worker ended"), reply_to=message(RecordDict({"config": ConfigRecord({})})))
    found = received(to_flower(failed), tmp_path / "arrived")
    assert (found.error.code, found.error.reason) == (8, "its worker ended")


def bomb(size: int, times: int) -> ArrayRecord:
    """An array that declares a size and lists one chunk of 5 MB many times."""
    chunk, array = ArrayChunk(memoryview(bytes(CHUNK_BYTES))), Array("uint8", (size,), "zk0.safetensors", b"")
    set_array_chunks(array, [chunk] * times)
    record = ArrayRecord()
    record["file"] = array
    return record


class TestForeignMessages:
    """Messages that zk0 does not understand are refused, and leave no file."""

    def refused(self, content: RecordDict, tmp_path: Path, reason: str) -> None:
        with pytest.raises(FederationError, match=reason):
            received(to_flower(message(content)), tmp_path / "arrived")
        assert list(tmp_path.glob("*arrived*")) == []

    def test_arrays_of_another_kind(self, tmp_path: Path) -> None:
        other = ArrayRecord({"w": Array("float32", (2,), "numpy.ndarray", b"12345678")})
        self.refused(RecordDict({"weights": other}), tmp_path, "an array of numpy.ndarray, expected one of zk0")

    def test_two_files(self, tmp_path: Path) -> None:
        for name in ("x", "y"):
            (tmp_path / name).write_bytes(name.encode())
        content = RecordDict({name: file_record(tmp_path / name) for name in ("x", "y")})
        self.refused(content, tmp_path, "does not understand")

    @pytest.mark.parametrize("size", [1, CHUNK_BYTES, 10 * CHUNK_BYTES])
    def test_a_chunk_that_is_listed_often_fills_no_disk(self, size: int, tmp_path: Path) -> None:
        """A thousand times one chunk of 5 MB, under any size that the array declares."""
        sent, fetched = to_flower(message(RecordDict({"weights": bomb(size, 1000)}))), []

        def fetch(object_id: str) -> Any:
            fetched.append(object_id)
            return sent.objects[object_id].deflate()

        with pytest.raises(FederationError, match="more than the"):
            from_flower(sent.object_tree, fetch, tmp_path / "arrived")
        assert len(fetched) == len(set(fetched))
        assert list(tmp_path.iterdir()) == []

    def test_weights_above_the_limit_are_not_fetched(self, tmp_path: Path) -> None:
        sent = to_flower(message(RecordDict({"weights": bomb(10 * CHUNK_BYTES, 10)})))
        fetched: list[str] = []
        with pytest.raises(FederationError, match="expected at most 100"):
            from_flower(sent.object_tree, lambda i: fetched.append(i) or sent.objects[i].deflate(), tmp_path / "x", 100)
        assert len(fetched) == 4
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("shape", [(), (1, 2), (-1,), (2**70,)])
    def test_sizes_that_are_none(self, shape: tuple[int, ...], tmp_path: Path) -> None:
        record = bomb(1, 1)
        record["file"].__dict__["shape"] = shape
        with pytest.raises(FederationError):
            received(to_flower(message(RecordDict({"weights": record}))), tmp_path / "arrived")
        assert list(tmp_path.iterdir()) == []

    def test_many_records(self, tmp_path: Path) -> None:
        content = RecordDict({f"r{i}": ConfigRecord({"x": i}) for i in range(100)})
        self.refused(content, tmp_path, "children")

    def test_invalid_objects(self, tmp_path: Path) -> None:
        sent = to_flower(message(request_with(tmp_path)))
        for content in (b"", b"x" * 100, b"Evil  3\x00abc", b"Message a,b 0\x00", b"\xff\xfe 1\x00"):
            with pytest.raises(FederationError, match="does not understand"):
                from_flower(
                    ObjectTree(object_id=get_object_id(content)),
                    {get_object_id(content): content}.__getitem__,
                    tmp_path / "arrived",
                )
            with pytest.raises(FederationError, match="expected"):
                from_flower(sent.object_tree, lambda _, content=content: content, tmp_path / "arrived")
        assert list(tmp_path.iterdir()) == []

    def test_objects_that_are_nested_too_deep(self, tmp_path: Path) -> None:
        objects, child = {}, "0" * 64
        for _ in range(5000):
            content = f"RecordDict {child} 2\x00{{}}".encode()
            child = get_object_id(content)
            objects[child] = content
        with pytest.raises(FederationError, match="depth 4"):
            from_flower(ObjectTree(object_id=child), objects.__getitem__, tmp_path / "arrived")

    @pytest.mark.parametrize("kind", ["RecordDict", "ArrayRecord", "Array"])
    @pytest.mark.parametrize("body", [b"[" * 100_000, b'{"a":' * 100_000, b"[" * 2_000_000], ids=["[", "{", "long"])
    def test_lists_that_are_nested_too_deep(self, kind: str, body: bytes, tmp_path: Path) -> None:
        content = f"{kind}  {len(body)}".encode() + b"\0" + body
        child = get_object_id(content)
        with pytest.raises(FederationError, match="does not understand"):
            from_flower(ObjectTree(object_id=child), {child: content}.__getitem__, tmp_path / "arrived")
        assert list(tmp_path.iterdir()) == []

    def test_a_list_of_a_megabyte(self, tmp_path: Path) -> None:
        """Its parsed form would take thirty times as much memory."""
        body = b'{"arraychunk_ids": [' + b"0," * 600_000 + b'0], "shape": [1], "stype": "zk0.safetensors"}'
        content = f"Array  {len(body)}".encode() + b"\0" + body
        child = get_object_id(content)
        with pytest.raises(FederationError, match="an object of type Array with 1200"):
            from_flower(ObjectTree(object_id=child), {child: content}.__getitem__, tmp_path / "arrived")

"""Weights between machines: read and written in pieces, and a path in a message from elsewhere is never believed."""

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
from zk0.federation.parcel import Parcel, file_record, packed, parcel, unpacked

PIECE = 5_242_880


def message(content: Any) -> Message:
    return Message(content=content, metadata=Metadata(1, "m", 1, 5, "", "3", time.time(), 60.0, "train"))


def asked_with(path: Path) -> RecordDict:
    return RecordDict({"config": ConfigRecord({"plan": "{}", "weights-path": str(path)})})


def arrived(sent: Parcel, target: Path) -> Message:
    return unpacked(sent.tree, lambda one: sent.objects[one].deflate(), target)


@pytest.mark.parametrize("size", [1, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE + 7])
def test_a_file_arrives_as_it_left(size: int, tmp_path: Path) -> None:
    source, target = tmp_path / "sent", tmp_path / "there" / "arrived"
    source.write_bytes(os.urandom(size))
    found = arrived(parcel(message(packed(asked_with(source)))), target)
    assert target.read_bytes() == source.read_bytes()
    assert dict(found.content["config"]) == {"plan": "{}", "weights-path": str(target)}
    assert list(found.content) == ["config"]
    assert [p.name for p in target.parent.iterdir()] == ["arrived"]


def test_pieces_that_repeat_are_sent_once_and_arrive_in_order(tmp_path: Path) -> None:
    source, zeros, other = tmp_path / "sent", bytes(PIECE), os.urandom(PIECE)
    source.write_bytes(zeros + other + zeros + other[:9])
    sent = parcel(message(packed(asked_with(source))))
    assert len([one for one in sent.objects.values() if type(one).__name__ == "_FilePiece"]) == 3
    arrived(sent, tmp_path / "arrived")
    assert (tmp_path / "arrived").read_bytes() == source.read_bytes()


def test_memory_stays_that_of_a_piece(tmp_path: Path) -> None:
    source = tmp_path / "sent"
    with source.open("wb") as file:
        for _ in range(20):
            file.write(os.urandom(PIECE))
    tracemalloc.start()
    arrived(parcel(message(packed(asked_with(source)))), tmp_path / "arrived")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 6 * PIECE


def test_messages_that_share_weights_share_their_pieces(tmp_path: Path) -> None:
    source = tmp_path / "sent"
    source.write_bytes(os.urandom(2 * PIECE))
    record = file_record(source)
    one, two = (parcel(message(packed(asked_with(source), lambda _: record))) for _ in range(2))
    assert len(one.objects) == len(two.objects) == 7
    assert len(one.objects.keys() & two.objects.keys()) == 6  # all but the message's head


def test_a_path_from_elsewhere_is_never_believed(tmp_path: Path) -> None:
    lie = RecordDict({"config": ConfigRecord({"plan": "{}", "weights-path": "/etc/passwd"})})
    found = arrived(parcel(message(lie)), tmp_path / "arrived")
    assert dict(found.content["config"]) == {"plan": "{}"}
    assert list(tmp_path.iterdir()) == []


def test_an_error_arrives_as_one(tmp_path: Path) -> None:
    failed = Message(Error(8, "its worker ended"), reply_to=message(RecordDict({"config": ConfigRecord({})})))
    found = arrived(parcel(failed), tmp_path / "arrived")
    assert (found.error.code, found.error.reason) == (8, "its worker ended")


class TestOthersMessages:
    """What zk0 does not understand is refused, and leaves nothing behind."""

    def refused(self, content: RecordDict, tmp_path: Path, said: str) -> None:
        with pytest.raises(FederationError, match=said):
            arrived(parcel(message(content)), tmp_path / "arrived")
        assert list(tmp_path.glob("*arrived*")) == []

    def test_arrays_of_another_kind(self, tmp_path: Path) -> None:
        other = ArrayRecord({"w": Array("float32", (2,), "numpy.ndarray", b"12345678")})
        self.refused(RecordDict({"weights": other}), tmp_path, "an array of numpy.ndarray, expected one of zk0")

    def test_two_files(self, tmp_path: Path) -> None:
        for name in ("x", "y"):
            (tmp_path / name).write_bytes(name.encode())
        content = RecordDict({name: file_record(tmp_path / name) for name in ("x", "y")})
        self.refused(content, tmp_path, "does not understand")

    def test_objects_that_are_none(self, tmp_path: Path) -> None:
        sent = parcel(message(asked_with(tmp_path)))
        for content in (b"", b"x" * 100, b"Evil  3\x00abc", b"Message a,b 0\x00", b"\xff\xfe 1\x00"):
            with pytest.raises(FederationError, match="does not understand"):
                unpacked(
                    ObjectTree(object_id=get_object_id(content)),
                    {get_object_id(content): content}.__getitem__,
                    tmp_path / "arrived",
                )
            with pytest.raises(FederationError, match="expected"):
                unpacked(sent.tree, lambda _, content=content: content, tmp_path / "arrived")
        assert list(tmp_path.iterdir()) == []

    def test_objects_without_end(self, tmp_path: Path) -> None:
        objects, child = {}, "0" * 64
        for _ in range(5000):
            content = f"RecordDict {child} 2\x00{{}}".encode()
            child = get_object_id(content)
            objects[child] = content
        with pytest.raises(FederationError, match="depth 4"):
            unpacked(ObjectTree(object_id=child), objects.__getitem__, tmp_path / "arrived")

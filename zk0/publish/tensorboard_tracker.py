"""A session as one run of TensorBoard: event files in the session's folder, one step per round.

`tensorboard --logdir outputs` shows all sessions. The format is TFRecord (length, masked CRC-32C, data, masked CRC-32C)
with one `Event` message of tensorflow/core/util/event.proto each; it is written here, because the package tensorboard
is needed only to look at it.
"""

import struct
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path

from zk0.errors import PublishError
from zk0.publish.metrics_tracker import MetricsTracker
from zk0.records import RoundRecord

TENSORBOARD_FOLDER = "tensorboard"
"""Folder of the event file, in the session's folder."""
EVENT_FILE = "events.out.tfevents.0000000000.zk0"
_POLYNOMIAL = 0x82F63B78
_FIXED64, _BYTES, _VARINT, _FIXED32 = 1, 2, 0, 5
_MASK_DELTA = 0xA282EAD8


class TensorBoardTracker(MetricsTracker):
    """The event file of a session, to which rounds are appended.

    Args:
        folder: of the session.

    Raises:
        PublishError: the file there is no event file.
    """

    def __init__(self, folder: Path) -> None:
        self._file = folder / TENSORBOARD_FOLDER / EVENT_FILE
        steps = list(_steps(self._file)) if self._file.is_file() else []
        super().__init__(steps[-1] + 1 if steps else 0)

    def write_round(self, record: RoundRecord, values: Mapping[str, float]) -> None:
        """Append an event with one scalar for each value."""
        time = datetime.fromisoformat(record.finished_at).timestamp()
        head = _double(1, time) + _integer(2, record.round)
        self._file.parent.mkdir(exist_ok=True)
        with self._file.open("ab") as file:
            if not file.tell():
                file.write(framed(_double(1, time) + _text(3, b"brain.Event:2")))
            summary = b"".join(_text(1, _text(1, name.encode()) + _float(2, value)) for name, value in values.items())
            file.write(framed(head + _text(5, summary)))


def framed(data: bytes) -> bytes:
    """Return one TFRecord."""
    length = struct.pack("<Q", len(data))
    return length + _masked(length) + data + _masked(data)


def crc32c(data: bytes) -> int:
    """Return the CRC-32C (Castagnoli) of some bytes.

    >>> hex(crc32c(b"123456789"))
    '0xe3069283'
    """
    found = 0xFFFFFFFF
    for byte in data:
        found = _TABLE[(found ^ byte) & 0xFF] ^ (found >> 8)
    return found ^ 0xFFFFFFFF


def _table_entry(value: int) -> int:
    for _ in range(8):
        value = (value >> 1) ^ (_POLYNOMIAL if value & 1 else 0)
    return value


_TABLE = [_table_entry(value) for value in range(256)]


def _masked(data: bytes) -> bytes:
    found = crc32c(data)
    rotated = (found >> 15) | (found << 17)
    return struct.pack("<I", (rotated + _MASK_DELTA) & 0xFFFFFFFF)


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*found, value])


def _key(field: int, kind: int) -> bytes:
    return _varint(field << 3 | kind)


def _double(field: int, value: float) -> bytes:
    return _key(field, _FIXED64) + struct.pack("<d", value)


def _float(field: int, value: float) -> bytes:
    return _key(field, _FIXED32) + struct.pack("<f", value)


def _integer(field: int, value: int) -> bytes:
    return _key(field, _VARINT) + _varint(value)


def _text(field: int, value: bytes) -> bytes:
    return _key(field, _BYTES) + _varint(len(value)) + value


def _steps(file: Path) -> Iterator[int]:
    """Yield the step of each event that zk0 wrote; an event that a killed process left incomplete is cut off."""
    data, at = file.read_bytes(), 0
    while at < len(data):
        end = at + 16 + (struct.unpack_from("<Q", data, at)[0] if at + 8 <= len(data) else 0)
        if end > len(data):
            with file.open("r+b") as broken:
                broken.truncate(at)
            return
        if data[at:end] != framed(data[at + 12 : end - 4]):
            raise PublishError(
                f"{file}: byte {at} begins no event; move the file away, and all rounds are written again"
            )
        if (step := _step_of(data[at + 12 : end - 4])) is not None:
            yield step
        at = end


def _step_of(event: bytes) -> int | None:
    """Return the step of an event as `write_round` writes it; None for the file's first event."""
    if event[9:10] != _key(2, _VARINT):
        return None
    step, shift, at = 0, 0, 10
    while True:
        step |= (event[at] & 0x7F) << shift
        if event[at] < 0x80:
            return step
        shift, at = shift + 7, at + 1

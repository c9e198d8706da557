"""A file of records after its writer was killed in the middle of a line."""

from pathlib import Path

import pytest

from zk0.records import Refusal
from zk0.storage.record_lines import RecordLines

RECORDS = [Refusal(client="a", reason="late"), Refusal(client="b", reason="NaN in ä"), Refusal(client="c", reason="x")]


def test_records_are_read_in_their_order(tmp_path: Path) -> None:
    lines = RecordLines(tmp_path / "lines.jsonl", Refusal)
    assert lines.read() == ()
    for count, record in enumerate(RECORDS, start=1):
        lines.append(record)
        assert lines.read() == tuple(RECORDS[:count])


@pytest.mark.parametrize("whole", [0, 1, 2])
@pytest.mark.parametrize("kept", [1, 20, -1])
def test_half_a_line_is_no_record_and_the_next_one_takes_its_place(tmp_path: Path, whole: int, kept: int) -> None:
    file = tmp_path / "lines.jsonl"
    lines = RecordLines(file, Refusal)
    for record in RECORDS[:whole]:
        lines.append(record)
    before = file.read_bytes() if whole else b""
    lines.append(RECORDS[whole])
    file.write_bytes(before + file.read_bytes()[len(before) :][:kept])
    assert lines.read() == tuple(RECORDS[:whole])
    lines.append(RECORDS[2])
    assert lines.read() == (*RECORDS[:whole], RECORDS[2])

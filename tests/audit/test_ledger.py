"""The ledger survives a crash at any byte, and detects tampering."""

import hashlib
import json
import signal
import subprocess
import sys
import time

import pytest

from zk0.audit.hash_chain import FIRST_PREVIOUS
from zk0.audit.ledger import Ledger
from zk0.errors import LedgerError
from zk0.records import Checkpoint, Refusal, RoundDecision, RoundRecord


def finished(number: int, seconds: float = 1.5) -> RoundRecord:
    return RoundRecord(
        round=number,
        decision=RoundDecision(round=number, lr=1e-4, mu=0.01, reason="cosine; μ wie gehabt") if number else None,
        checkpoint=Checkpoint(round=number, path=f"round-{number:03d}/weights.safetensors", digest="d" * 64, bytes=8),
        refusals=(Refusal(client="c", reason="line\nfeed and \u2028 too"),),
        seconds=seconds,
        finished_at="2026-01-01T00:00:00+00:00",
    )


@pytest.fixture
def ledger(tmp_path):
    result = Ledger(tmp_path / "session" / "ledger.jsonl")
    for number in range(3):
        result.append(finished(number))
    return result


def test_rounds_are_read_back(ledger):
    assert ledger.read() == (finished(0), finished(1), finished(2))
    assert Ledger(ledger.path).read() == ledger.read()


def test_a_record_in_use_is_read_once(ledger):
    before = ledger.read()
    ledger.append(finished(3))
    again = ledger.read()
    assert all(first is second for first, second in zip(before, again, strict=False))
    lines = ledger.path.read_bytes().splitlines()
    ledger.path.write_bytes(b"\n".join([lines[0].replace(b"1.5", b"2.5"), *lines[1:], b""]))
    with pytest.raises(LedgerError, match="line 2: chained to"):
        ledger.read()
    ledger.path.write_bytes(b"\n".join([lines[0], *lines[2:], b""]))
    with pytest.raises(LedgerError, match="line 2: chained to"):
        ledger.read()
    assert before[0].seconds == 1.5


def test_ledger_without_a_file_is_empty(tmp_path):
    ledger = Ledger(tmp_path / "ledger.jsonl")
    assert ledger.read() == ()
    assert ledger.root() == FIRST_PREVIOUS
    assert not ledger.path.exists()


def test_each_line_is_chained_to_the_bytes_of_the_previous_line(ledger):
    lines = ledger.path.read_bytes().splitlines(keepends=False)
    assert len(lines) == 3
    previous = "0" * 64
    for number, line in enumerate(lines):
        values = json.loads(line)
        assert list(values) == ["previous", "record"]
        assert values["previous"] == previous
        assert values["record"]["round"] == number
        previous = hashlib.sha256(line).hexdigest()
    assert ledger.root() == previous


def test_same_round_again_changes_nothing(ledger):
    before = ledger.path.read_bytes()
    for number in range(3):
        ledger.append(finished(number))
    assert ledger.path.read_bytes() == before


def test_another_record_of_a_finished_round_is_refused(ledger):
    before = ledger.path.read_bytes()
    with pytest.raises(LedgerError, match="round 1 is finished with another record"):
        ledger.append(finished(1, seconds=2.0))
    assert ledger.path.read_bytes() == before


def test_round_that_is_not_the_next_is_refused(ledger, tmp_path):
    with pytest.raises(LedgerError, match="record of round 4, expected round 3"):
        ledger.append(finished(4))
    with pytest.raises(LedgerError, match="record of round 1, expected round 0"):
        Ledger(tmp_path / "new.jsonl").append(finished(1))


def test_every_truncation_of_the_last_line(ledger):
    content = ledger.path.read_bytes()
    root = ledger.root()
    start = content.rindex(b"\n", 0, -1) + 1
    for length in range(start, len(content)):
        ledger.path.write_bytes(content[:length])
        assert ledger.read() == (finished(0), finished(1)), length
        ledger.append(finished(2))
        assert ledger.path.read_bytes() == content
        assert ledger.root() == root


def test_every_truncation_of_the_only_line(tmp_path):
    ledger = Ledger(tmp_path / "ledger.jsonl")
    ledger.append(finished(0))
    content = ledger.path.read_bytes()
    for length in range(len(content)):
        ledger.path.write_bytes(content[:length])
        assert ledger.read() == ()
        ledger.append(finished(0))
        assert ledger.path.read_bytes() == content


def test_incomplete_line_longer_than_the_next_is_removed(ledger):
    content = ledger.path.read_bytes()
    ledger.path.write_bytes(content + b"x" * 10_000)
    assert len(ledger.read()) == 3
    ledger.append(finished(3))
    assert ledger.path.read_bytes().startswith(content)
    assert b"xx" not in ledger.path.read_bytes()
    assert len(ledger.read()) == 4


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda lines: [lines[0].replace(b'"seconds":1.5', b'"seconds":1.6'), *lines[1:]], "line 2: chained to"),
        (lambda lines: [lines[0], lines[2]], "line 2: chained to"),
        (lambda lines: lines[1:], "line 1: chained to"),
        (lambda lines: [lines[1], lines[0], lines[2]], "line 1: chained to"),
        (lambda lines: [lines[0], lines[0], lines[1]], "line 2: chained to"),
        (lambda lines: [lines[0], lines[1][:-9], lines[2]], "line 2: not a finished round"),
        (lambda lines: [lines[0], b"", lines[2]], "line 2: not a finished round"),
        (lambda lines: [lines[0], b"\xff\xfe", lines[2]], "line 2: not a finished round"),
        (
            lambda lines: [lines[0].replace(b'"seconds"', b'"hours"'), *lines[1:]],
            "line 1: not a finished round: record",
        ),
        (
            lambda lines: [lines[0].replace(FIRST_PREVIOUS.encode(), b"x"), *lines[1:]],
            "line 1: not a finished round: previous",
        ),
    ],
)
def test_tampered_line_is_named(ledger, change, words):
    lines = ledger.path.read_bytes().split(b"\n")[:-1]
    broken = b"\n".join(change(lines)) + b"\n"
    ledger.path.write_bytes(broken)
    for act in (ledger.read, ledger.root, lambda: ledger.append(finished(3))):
        with pytest.raises(LedgerError, match=words):
            act()
    assert ledger.path.read_bytes() == broken


def test_wrong_round_number_in_a_valid_chain(tmp_path):
    line = json.dumps({"previous": FIRST_PREVIOUS, "record": finished(1).model_dump(mode="json")})
    (tmp_path / "l").write_text(line + "\n", encoding="utf-8")
    with pytest.raises(LedgerError, match="line 1: round 1, expected round 0"):
        Ledger(tmp_path / "l").read()


def test_folder_instead_of_a_file(tmp_path):
    with pytest.raises(LedgerError, match="cannot be read"):
        Ledger(tmp_path).read()


WRITE = """
import sys
from pathlib import Path
from zk0.audit.ledger import Ledger
from zk0.records import RoundRecord
ledger = Ledger(Path(sys.argv[1]))
base = RoundRecord.model_validate_json(sys.argv[2])
number = len(ledger.read())
while True:
    ledger.append(base.model_copy(update={"round": number}))
    print(number, flush=True)
    number += 1
"""


def test_killed_writer_loses_no_finished_round(tmp_path):
    ledger = Ledger(tmp_path / "ledger.jsonl")
    reported = -1
    for wait in (0.0, 0.003, 0.011, 0.017, 0.029):
        command = [sys.executable, "-c", WRITE, str(ledger.path), finished(0).model_dump_json()]
        writer = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert writer.stdout is not None
        reported = int(writer.stdout.readline())
        time.sleep(wait)
        writer.send_signal(signal.SIGKILL)
        rest, _ = writer.communicate()
        reported = int(rest.split()[-1]) if rest.split() and rest.endswith("\n") else reported
        rounds = [record.round for record in ledger.read()]
        assert rounds == list(range(len(rounds)))
        assert len(rounds) > reported  # every round that was reported as finished


def test_concurrent_writers_do_not_mix_their_lines(tmp_path):
    path = tmp_path / "ledger.jsonl"
    script = """
import sys
from pathlib import Path
from zk0.audit.ledger import Ledger
from zk0.records import RoundRecord
base = RoundRecord.model_validate_json(sys.argv[2])
for number in range(40):
    Ledger(Path(sys.argv[1])).append(base.model_copy(update={"round": number}))
"""
    command = [sys.executable, "-c", script, str(path), finished(0).model_dump_json()]
    writers = [subprocess.Popen(command) for _ in range(2)]
    assert [writer.wait() for writer in writers] == [0, 0]
    assert [record.round for record in Ledger(path).read()] == list(range(40))


def test_root_with_a_round_is_known_before_it_is_appended(tmp_path):
    ledger = Ledger(tmp_path / "ledger.jsonl")
    for number in range(3):
        expected = ledger.root_with(finished(number))
        ledger.append(finished(number))
        assert ledger.root() == expected
    assert ledger.root_with(finished(2)) == ledger.root(), "a round that is in the ledger already changes nothing"
    assert ledger.root_with(finished(2, seconds=9.0)) != ledger.root()

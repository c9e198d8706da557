"""Journals hold every message, signed and chained, so that a changed line is detected."""

import hashlib
import json
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from zk0.audit.hash_chain import count_lines, newest_lines
from zk0.audit.journal import ReceivedAnswer, ReceivedJournal, SentJournal, SentMessage, SentWeights
from zk0.errors import LedgerError


def sent(number: int) -> SentMessage:
    weights = SentWeights(tensors=3, values=100, bytes=480, digest="d" * 64)
    text = json.dumps({"update_norm": 0.25, "grüße": number})
    return SentMessage(at="2026-01-01T00:00:00+00:00", to="s", kind="train", round=number, text=text, weights=weights)


@pytest.fixture
def journal(tmp_path: Path) -> SentJournal:
    made = SentJournal(tmp_path / "node" / "sent.jsonl")
    for number in range(3):
        made.append(sent(number))
    return made


def test_messages_are_read_back_and_the_key_is_reused(journal: SentJournal) -> None:
    assert journal.read() == tuple(sent(n) for n in range(3))
    SentJournal(journal.path).append(sent(3))
    assert [s.round for s in journal.read()] == [0, 1, 2, 3]


def test_journal_without_a_file_is_empty(tmp_path: Path) -> None:
    assert SentJournal(tmp_path / "sent.jsonl").read() == ()
    assert list(tmp_path.iterdir()) == []


def test_private_key_is_readable_by_its_owner_only(journal: SentJournal) -> None:
    assert stat.S_IMODE(journal.private_key.stat().st_mode) == 0o600
    assert len(journal.private_key.read_bytes()) == 32
    secret = journal.private_key.read_bytes()
    rest = [f.read_bytes() for f in journal.path.parent.iterdir() if f != journal.private_key]
    assert all(secret not in other and secret.hex().encode() not in other for other in rest)


def test_signatures_verify_with_the_public_key(journal: SentJournal) -> None:
    """Checked by hand: the chain, and Ed25519 over the bytes before the signature."""
    public = Ed25519PublicKey.from_public_bytes(bytes.fromhex(journal.public_key.read_text()))
    previous = "0" * 64
    for line in journal.path.read_bytes().splitlines():
        values = json.loads(line)
        assert list(values) == ["previous", "sent", "signature"]
        assert values["previous"] == previous
        public.verify(bytes.fromhex(values["signature"]), line[: -len(b',"signature":"') - 128 - 2])
        previous = hashlib.sha256(line).hexdigest()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda lines: [lines[0], lines[1], lines[2].replace(b"0.25", b"0.26")], "line 3: not signed by the key"),
        (lambda lines: [lines[0].replace(b"0.25", b"0.26"), *lines[1:]], "line 1: not signed by the key"),
        (lambda lines: [lines[0], lines[2]], "line 2: chained to"),
        (lambda lines: lines[1:], "line 1: chained to"),
        (lambda lines: [lines[0], b"{}", lines[2]], "line 2: not an entry of the sent journal"),
        (lambda lines: [lines[0], lines[1][:-2] + b"x", lines[2]], "line 2: not an entry of the sent journal"),
    ],
)
def test_changed_line_is_named(journal: SentJournal, change, words: str) -> None:
    lines = journal.path.read_bytes().split(b"\n")[:-1]
    journal.path.write_bytes(b"\n".join(change(lines)) + b"\n")
    with pytest.raises(LedgerError, match=words):
        journal.read()


def test_chain_signed_with_another_key_is_refused(journal: SentJournal, tmp_path: Path) -> None:
    other = SentJournal(tmp_path / "other.jsonl")
    for number in range(3):
        other.append(sent(number))
    journal.path.write_bytes(other.path.read_bytes())
    with pytest.raises(LedgerError, match=r"line 1: not signed by the key sent\.pub"):
        journal.read()


def test_every_truncation_of_the_last_line(journal: SentJournal) -> None:
    content = journal.path.read_bytes()
    start = content.rindex(b"\n", 0, -1) + 1
    for length in range(start, len(content), 7):
        journal.path.write_bytes(content[:length])
        assert len(journal.read()) == 2
    journal.append(sent(2))
    assert len(journal.read()) == 3


WRITE = """
import sys
from pathlib import Path
from zk0.audit.journal import SentJournal, SentMessage
for _ in range(15):
    SentJournal(Path(sys.argv[1])).append(SentMessage.model_validate_json(sys.argv[2]))
"""


def test_two_writers_share_one_key_and_one_chain(tmp_path: Path) -> None:
    path = tmp_path / "node" / "sent.jsonl"
    command = [sys.executable, "-c", WRITE, str(path), sent(1).model_dump_json()]
    writers = [subprocess.Popen(command) for _ in range(2)]
    assert [writer.wait() for writer in writers] == [0, 0]
    assert len(SentJournal(path).read()) == 30


def test_received_journal_is_signed_the_same_way(tmp_path: Path, journal: SentJournal) -> None:
    took = ReceivedAnswer(at="2026-01-01T00:00:00+00:00", session="s", client="a", kind="train", round=1, bytes=480)
    lost = took.model_copy(update={"refusal": "no answer within 3 s", "bytes": 0})
    book = ReceivedJournal(tmp_path / "accepted.jsonl")
    book.append(took)
    book.append(lost)
    assert book.read() == (took, lost)
    assert stat.S_IMODE(book.private_key.stat().st_mode) == 0o600
    lines = book.path.read_bytes().split(b"\n")
    book.path.write_bytes(b"\n".join([lines[0].replace(b'"refusal":""', b'"refusal":"x"'), *lines[1:]]))
    with pytest.raises(LedgerError, match=r"line 1: not signed by the key accepted\.pub"):
        book.read()
    with pytest.raises(LedgerError, match="line 1: not an entry of the accepted journal"):
        ReceivedJournal(journal.path).read()


@pytest.mark.parametrize("rest", [b"", b"half a li"])
@pytest.mark.parametrize("sizes", [[], [0], [3, 0, 70_000, 5, 200_000, 1], [65_535, 65_536, 65_537], [10] * 20_000])
def test_lines_from_the_end_are_those_from_the_beginning(tmp_path: Path, sizes: list[int], rest: bytes) -> None:
    file = tmp_path / "x.jsonl"
    lines = [bytes([97 + number % 26]) * size for number, size in enumerate(sizes)]
    file.write_bytes(b"".join(line + b"\n" for line in lines) + rest)
    found = list(newest_lines(file))
    assert [line for line, _ in found] == lines[::-1]
    assert [end for _, end in found] == [sum(size + 1 for size in sizes[: n + 1]) for n in range(len(sizes))][::-1]
    for _, end in found[:3]:
        assert count_lines(file, end) == len([other for _, other in found if other <= end])


def test_an_append_and_a_head_read_the_end_of_a_long_journal_only(journal: SentJournal) -> None:
    """Lines in the middle are a gap of 50 GB, which nothing could read in time."""
    journal.head()
    content, gap = journal.path.read_bytes(), 50 * 10**9
    with journal.path.open("r+b") as file:
        file.truncate(gap)
        file.seek(gap)
        file.write(b"\n" + content.splitlines()[-1] + b"\nhalf")
    journal.append(sent(3))
    assert next(journal.newest_first()) == sent(3)
    with journal.path.open("rb") as file:
        file.seek(gap)
        last, new = file.read().splitlines()[1:]
    assert json.loads(new)["previous"] == hashlib.sha256(last).hexdigest()


def test_the_head_of_a_journal_that_was_cut_and_grew_again(journal: SentJournal) -> None:
    assert journal.head().lines == 3
    journal.path.write_bytes(journal.path.read_bytes().split(b"\n")[0] + b"\nhalf")
    assert journal.head().lines == 1
    journal.append(sent(7))
    assert journal.head().lines == 2
    assert journal.head().digest == hashlib.sha256(journal.path.read_bytes().splitlines()[-1]).hexdigest()

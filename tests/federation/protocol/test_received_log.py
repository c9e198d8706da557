"""The server's record of received answers: accepted, refused, and refused after they had been accepted."""

from pathlib import Path

from flwr.app import ConfigRecord, RecordDict

from zk0.audit.journal import ReceivedJournal
from zk0.federation.engines.local import LocalGrid
from zk0.federation.protocol.collect import Federation
from zk0.federation.protocol.exchange import Reply
from zk0.federation.protocol.received_log import ReceivedLog, text_digest
from zk0.records import Refusal


def test_every_answer_and_every_quarantine_is_recorded(tmp_path: Path) -> None:
    log = ReceivedLog(tmp_path / "accepted.jsonl", "s")
    log.record(
        Reply("a", RecordDict({"answer": ConfigRecord({"done": True, "weights-path": "/x"})})), ("local_baseline", 3)
    )
    log.record(Reply("b", None, "no answer within 3 s"), ("train", 1), refusal="no answer within 3 s")
    with LocalGrid([], 0, tmp_path / "logs") as grid:
        Federation(grid, (), 1, log=log).record_quarantined([Refusal(client="c", reason="an outlier")], 1)
    found = ReceivedJournal(tmp_path / "accepted.jsonl").read()
    assert [(one.session, one.client, one.kind, one.round, one.refusal) for one in found] == [
        ("s", "a", "local_baseline", 3, ""),
        ("s", "b", "train", 1, "no answer within 3 s"),
        ("s", "c", "quarantine", 1, "an outlier"),
    ]
    assert [one.text for one in found] == [text_digest({"done": True}), "", ""]


def test_without_a_journal_nothing_is_written(tmp_path: Path) -> None:
    ReceivedLog(None, "s").record(Reply("a", None, "late"), ("train", 1), refusal="late")
    assert list(tmp_path.iterdir()) == []

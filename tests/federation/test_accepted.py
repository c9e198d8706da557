"""The server's own record: what was taken, what was not, and what was refused after all."""

from pathlib import Path

from flwr.app import ConfigRecord, RecordDict

from zk0.federation.accepted import AcceptedLog, text_digest
from zk0.federation.collect import Federation
from zk0.federation.exchange import Reply
from zk0.federation.local import LocalGrid
from zk0.journal import AcceptedJournal
from zk0.records import Refusal


def test_every_answer_is_a_line_and_so_is_a_second_thought(tmp_path: Path) -> None:
    log = AcceptedLog(tmp_path / "accepted.jsonl", "s")
    log.note(Reply("a", RecordDict({"answer": ConfigRecord({"done": True, "weights-path": "/x"})})), ("alone", 3))
    log.note(Reply("b", None, "no answer within 3 s"), ("train", 1), why="no answer within 3 s")
    with LocalGrid([], 0, tmp_path / "logs") as grid:
        Federation(grid, (), 1, log=log).put_aside([Refusal(client="c", reason="an outlier")], 1)
    found = AcceptedJournal(tmp_path / "accepted.jsonl").read()
    assert [(one.session, one.client, one.kind, one.round, one.refusal) for one in found] == [
        ("s", "a", "alone", 3, ""),
        ("s", "b", "train", 1, "no answer within 3 s"),
        ("s", "c", "quarantine", 1, "an outlier"),
    ]
    assert [one.text for one in found] == [text_digest({"done": True}), "", ""]


def test_where_clients_are_of_this_machine_nothing_is_written(tmp_path: Path) -> None:
    AcceptedLog(None, "s").note(Reply("a", None, "late"), ("train", 1), why="late")
    assert list(tmp_path.iterdir()) == []

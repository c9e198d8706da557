"""A node leaves after a given number of sessions: those that have ended since it was started."""

from pathlib import Path

from zk0.audit.journal import SentJournal, SentMessage
from zk0.federation.flower.api_client import Endpoint
from zk0.federation.network.agent import AgentSettings, SessionCount, ended_sessions
from zk0.federation.protocol.sent_log import SENT_JOURNAL
from zk0.settings.dataset_settings import ClientSettings


def test_sessions_count_when_their_receipts_are_answered(tmp_path: Path) -> None:
    journal = SentJournal(tmp_path / SENT_JOURNAL)

    def answered(session: str, kind: str) -> None:
        journal.append(SentMessage(at="2026-01-01T00:00:00+00:00", to=session, kind=kind, round=None, text="{}"))

    assert ended_sessions(tmp_path) == frozenset()
    answered("before", "receipts")
    settings = AgentSettings(
        client=ClientSettings(name="a", dataset="hf:lab/a"),
        scratch=tmp_path,
        cache=tmp_path,
        supernode=Endpoint(address="127.0.0.1:1", secret=tmp_path / "secret"),
        ledger_key="0" * 64,
        max_sessions=2,
        ended_before=ended_sessions(tmp_path),
    )
    count, forever = SessionCount(settings), SessionCount(settings.model_copy(update={"max_sessions": None}))
    for session, kind, reached in (
        ("first", "train", False), ("first", "receipts", False), ("first", "receipts", False),
        ("second", "join", False), ("second", "receipts", True),
    ):  # fmt: skip
        answered(session, kind)
        assert count.reached() is reached
    assert not forever.reached()

"""Comparison of a node's journal with that of its server: lines that were removed from the end of one of them.

The chain of a journal does not show that its last lines are missing. The other journal does: both have the digest of
each answer's text.
"""

import hashlib
from collections.abc import Sequence

from zk0.audit.journal import ReceivedAnswer, SentMessage
from zk0.records import Record


class JournalComparison(Record):
    """What two journals have in common, and what only one of them has."""

    client: str
    both: int
    """Answers that are in both journals."""
    missing_at_client: tuple[str, ...] = ()
    """Answers that the server has received and that are not in the client's journal: lines of it were removed."""
    missing_at_server: tuple[str, ...] = ()
    """Answers that the client has sent and that are not in the server's journal, nor refused there.

    They did not arrive, or lines of it were removed.
    """


def compare_journals(client: str, sent: Sequence[SentMessage], received: Sequence[ReceivedAnswer]) -> JournalComparison:
    """Compare what one client sent with what its server received from it.

    Args:
        client: its name.
        sent: the client's journal.
        received: the server's journal.
    """
    left = {hashlib.sha256(one.text.encode()).hexdigest(): one for one in sent}
    arrived = {one.text: one for one in received if one.client == client and one.text}
    refused = {(one.session, one.kind, one.round) for one in received if one.client == client and not one.text}
    return JournalComparison(
        client=client,
        both=len(left.keys() & arrived.keys()),
        missing_at_client=tuple(_named(one) for text, one in arrived.items() if text not in left),
        missing_at_server=tuple(
            _named(one)
            for text, one in left.items()
            if text not in arrived and (_session(one), one.kind, one.round) not in refused
        ),
    )


def _session(one: SentMessage | ReceivedAnswer) -> str:
    return one.to if isinstance(one, SentMessage) else one.session


def _named(one: SentMessage | ReceivedAnswer) -> str:
    of_round = "" if one.round is None else f" of round {one.round}"
    return f"{one.kind}{of_round} of session {_session(one)} at {one.at}"

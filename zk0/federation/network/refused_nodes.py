"""Nodes that could not join the last sessions, which therefore do not count toward the start of the next one."""

from collections.abc import Iterable
from datetime import UTC, datetime

from zk0.audit.journal import ReceivedAnswer
from zk0.records import Record

_LEAST_SECONDS, _MOST_SECONDS = 3600.0, 7 * 86_400.0
_CLOCK_SECONDS = 1.0
"""Times in the journal have no fractions of a second."""


class RefusedNode(Record):
    """A node whose last request to join a session was refused or not answered."""

    at: float
    """Unix time of the last refusal."""
    sessions: int
    """Sessions in a row that it could not join, the last one included."""

    def counts(self, connected_at: str, now: float, cooldown_seconds: float) -> bool:
        """Return whether the node counts again: it has connected anew, or has waited for long enough.

        The wait is twice the cooldown, at least an hour, and is doubled with each further session, up to a week.

        Args:
            connected_at: when the node connected, in ISO 8601; empty where that is not known.
            now: Unix time.
            cooldown_seconds: between two sessions.

        >>> node = RefusedNode(at=1000.0, sessions=1)
        >>> [node.counts("", 1000 + hours * 3600, 3600) for hours in (1, 2)]
        [False, True]
        >>> RefusedNode(at=1000.0, sessions=3).counts("", 1000 + 7 * 3600, 3600)
        False
        >>> [node.counts(f"1970-01-01T00:{minute}:00+00:00", 2000.0, 3600) for minute in (16, 17)]
        [False, True]
        """
        wait = max(2 * cooldown_seconds, _LEAST_SECONDS) * 2 ** min(self.sessions - 1, 20)
        return now >= self.at + min(wait, _MOST_SECONDS) or _unix_time(connected_at) > self.at + _CLOCK_SECONDS


def refused_nodes(newest_first: Iterable[ReceivedAnswer], now: float) -> dict[str, RefusedNode]:
    """Return the nodes whose last request to join was refused, by name.

    Args:
        newest_first: the server's journal from its end on; nothing older than a week before `now` is read.
        now: Unix time.
    """
    refused: dict[str, tuple[float, set[str]]] = {}
    joined = set[str]()
    for one in newest_first:
        if (at := _unix_time(one.at)) < now - _MOST_SECONDS:
            break
        if one.kind != "join" or one.client in joined:
            continue
        if not one.refusal and one.session not in refused.get(one.client, (0.0, set()))[1]:
            joined.add(one.client)
        elif one.refusal:
            refused.setdefault(one.client, (at, set()))[1].add(one.session)
    return {name: RefusedNode(at=at, sessions=len(sessions)) for name, (at, sessions) in refused.items()}


def _unix_time(text: str) -> float:
    """Return a time in ISO 8601 as Unix time; 0 where it is none."""
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        return 0.0
    return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()

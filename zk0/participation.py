"""Who takes part in a round: the same clients for the same seed and round, whoever asks and in whatever order."""

import hashlib
from collections.abc import Sequence

from zk0.records import Decision
from zk0.session import Session


def sample_size(clients: int, fraction: float, least: int) -> int:
    """How many of so many clients train in a round, as Flower counts them: the fraction, rounded down, or the least.

    >>> sample_size(12, 0.3, least=2), sample_size(12, 0.1, least=2), sample_size(3, 1.0, least=2)
    (3, 2, 3)
    """
    return min(clients, max(least, int(clients * fraction)))


def participants(seed: int, round_number: int, clients: Sequence[str], count: int) -> tuple[str, ...]:
    """`count` of the clients, drawn without replacement, in the order in which they were given.

    Each is ranked by a SHA-256 of seed, round and name: any `count` of them are equally likely, rounds are independent,
    and a session that is taken up again draws the same.

    >>> participants(42, 1, ["a", "b", "c", "d"], 2)
    ('a', 'b')
    >>> participants(42, 1, ["d", "c", "b", "a"], 2)
    ('b', 'a')
    """
    ranks = {name: hashlib.sha256(f"{seed}/{round_number}/takes part/{name}".encode()).digest() for name in clients}
    chosen = set(sorted(clients, key=ranks.__getitem__)[:count])
    return tuple(name for name in clients if name in chosen)


def with_participants(decision: Decision, session: Session, clients: Sequence[str]) -> Decision:
    """The decision, and who takes part; unchanged where all do."""
    settings = session.federation
    count = sample_size(len(clients), settings.fraction_fit, settings.min_updates)
    if count == len(clients):
        return decision
    chosen = participants(session.seed, decision.round, clients, count)
    reason = f"{decision.reason}; {count} of {len(clients)} clients take part"
    return decision.model_copy(update={"clients": chosen, "reason": reason})

"""Participation: the clients that train in a round, and the least number of updates that it needs.

The sample depends on seed, round and client names only, not on the order of calls or clients.
"""

import hashlib
from collections.abc import Sequence

from zk0.errors import RoundIncomplete
from zk0.records import Refusal, RoundDecision, Update
from zk0.settings.session import Session


def sample_size(clients: int, fraction: float, least: int) -> int:
    """Number of clients that train in a round, as Flower counts them: the fraction, rounded down, or `least` if larger.

    >>> sample_size(12, 0.3, least=2), sample_size(12, 0.1, least=2), sample_size(3, 1.0, least=2)
    (3, 2, 3)
    """
    return min(clients, max(least, int(clients * fraction)))


def sample_clients(seed: int, round_number: int, clients: Sequence[str], count: int) -> tuple[str, ...]:
    """Sample `count` clients without replacement, returned in the given order.

    Clients are ranked by a SHA-256 of seed, round and name: every subset of `count` clients is equally likely, rounds
    are independent, and a resumed session samples the same clients.

    >>> sample_clients(42, 1, ["a", "b", "c", "d"], 2)
    ('a', 'b')
    >>> sample_clients(42, 1, ["d", "c", "b", "a"], 2)
    ('b', 'a')
    """
    # The hashed text decides the sample: it stays as it is, so that a session can be reproduced.
    ranks = {name: hashlib.sha256(f"{seed}/{round_number}/takes part/{name}".encode()).digest() for name in clients}
    chosen = set(sorted(clients, key=ranks.__getitem__)[:count])
    return tuple(name for name in clients if name in chosen)


def with_participants(decision: RoundDecision, session: Session, clients: Sequence[str]) -> RoundDecision:
    """The decision with the sampled clients; unchanged if all clients take part."""
    settings = session.federation
    count = sample_size(len(clients), settings.fraction_fit, settings.min_updates)
    if count == len(clients):
        return decision
    chosen = sample_clients(session.seed, decision.round, clients, count)
    reason = f"{decision.reason}; {count} of {len(clients)} clients take part"
    return decision.model_copy(update={"clients": chosen, "reason": reason})


def check_enough_updates(
    round_number: int, updates: Sequence[Update], refusals: Sequence[Refusal], min_updates: int
) -> None:
    """Check that a round has enough accepted updates to aggregate.

    Raises:
        RoundIncomplete: it has fewer than `min_updates`; the message holds the reason of each refusal.
    """
    if len(updates) < min_updates:
        reasons = "; ".join(f"{r.client}: {r.reason}" for r in refusals)
        raise RoundIncomplete(
            f"round {round_number}: {len(updates)} good updates, expected at least {min_updates} ({reasons}); "
            "finished updates are kept"
        )

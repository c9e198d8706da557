"""Which clients mask their updates with each other: all of them, or a k-regular graph of a public seed (SecAgg+)."""

import hashlib
from collections.abc import Sequence


def neighbor_graph(clients: Sequence[str], count: int | None, seed: bytes) -> dict[str, tuple[str, ...]]:
    """Return the neighbors of each client, in the order of their names.

    With more than `count + 1` clients they stand on a ring in an order that the seed decides, and the neighbors are the
    `count / 2` next ones on either side (a Harary graph, Bell et al., CCS 2020, section 3.1).

    Args:
        clients: their names, each once.
        count: neighbors of a client, an even number; None: all others.
        seed: public.

    >>> neighbor_graph(["a", "b", "c"], 2, b"")
    {'a': ('b', 'c'), 'b': ('a', 'c'), 'c': ('a', 'b')}
    >>> neighbor_graph("abcd", None, b"")["a"]
    ('b', 'c', 'd')
    >>> {len(found) for found in neighbor_graph("abcdefgh", 4, b"seed").values()}
    {4}
    """
    if count is not None and (count < 2 or count % 2):
        raise ValueError(f"{count} neighbors, expected an even number from 2 on")
    if count is None or len(clients) <= count + 1:
        return {name: tuple(sorted(other for other in clients if other != name)) for name in clients}
    ring = sorted(clients, key=lambda name: hashlib.sha256(seed + b"/" + name.encode()).digest())
    steps = [step for step in range(-count // 2, count // 2 + 1) if step]
    return {name: tuple(sorted(ring[(at + step) % len(ring)] for step in steps)) for at, name in enumerate(ring)}

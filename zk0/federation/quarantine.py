"""Updates that were taken one by one, and turn out to be outliers beside the others."""

from pathlib import Path

from zk0.aggregation.quarantine import find_outliers
from zk0.federation.answers import Collected
from zk0.federation.spool import Spool


def without_outliers(found: Collected, spool: Path, weights: Path, factor: float, threads: int = 1) -> Collected:
    """What came back in a round without outliers: those are refused, and their weights kept aside for a look."""
    reasons = find_outliers(found.updates, weights, factor, threads)
    lies = Spool(spool, weights)
    refused = tuple(lies.put_aside(client, reason) for client, reason in reasons.items())
    return Collected(
        updates=tuple(u for u in found.updates if u.client not in reasons),
        refusals=tuple(sorted((*found.refusals, *refused), key=lambda r: r.client)),
        all_refusals=lies.refusals(),
    )

"""Updates that were taken one by one, and turn out to be outliers beside the others."""

from pathlib import Path

from zk0.aggregation.quarantine import outliers
from zk0.federation.answers import Collected
from zk0.federation.spool import Spool


def without_outliers(found: Collected, spool: Path, weights: Path, factor: float) -> Collected:
    """What came back in a round without outliers: those are refused, and their weights kept aside for a look."""
    reasons = outliers(found.step_norms, factor)
    lies = Spool(spool, weights)
    refused = tuple(lies.put_aside(client, reason) for client, reason in reasons.items())
    return Collected(
        updates=tuple(u for u in found.updates if u.client not in reasons),
        refusals=tuple(sorted((*found.refusals, *refused), key=lambda r: r.client)),
        all_refusals=lies.refusals(),
        step_norms={client: norm for client, norm in found.step_norms.items() if client not in reasons},
    )

"""Quarantine of norm outliers: updates that are valid, but much larger than those of the other clients."""

from pathlib import Path

from zk0.aggregation.norm_outliers import norm_outliers
from zk0.federation.protocol.replies import CollectedUpdates
from zk0.federation.protocol.spool import Spool


def quarantine_norm_outliers(found: CollectedUpdates, spool: Path, weights: Path, factor: float) -> CollectedUpdates:
    """Return a round's updates without norm outliers, which are refused; their weights stay in the spool as evidence.

    Args:
        found: the updates of the round.
        spool: folder of the round's spool.
        weights: file of the global weights that the round started from.
        factor: an outlier's norm is more than `factor` times the median (`zk0.aggregation.norm_outliers`).
    """
    reasons = norm_outliers(found.delta_norms, factor)
    spooled = Spool(spool, weights)
    refused = tuple(spooled.quarantine(client, reason) for client, reason in reasons.items())
    return CollectedUpdates(
        updates=tuple(u for u in found.updates if u.client not in reasons),
        refusals=tuple(sorted((*found.refusals, *refused), key=lambda r: r.client)),
        all_refusals=spooled.refusals(),
        delta_norms={client: norm for client, norm in found.delta_norms.items() if client not in reasons},
    )

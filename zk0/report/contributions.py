"""Influence of each client on the aggregated delta of a round, exact from the norms and cosines in the ledger.

The aggregated delta is the change of the global weights in a round; the delta of a client is its update minus the
global weights.
"""

from math import fsum, sqrt

from zk0.records import Contribution, Record, RoundRecord

_TOLERANCE = 1e-4
"""Largest deviation of the sum of shares from 1 for a weighted mean; rounding to float32 stays far below it."""


class Influence(Record):
    """Influence of client k with weight w_k and delta d_k on the aggregated delta D = sum_k w_k d_k."""

    share: float
    """w_k <d_k, D> / ||D||^2. All shares sum to 1; a client whose delta opposes D has a negative share."""
    leave_one_out_shift: float | None
    """||D - D without k|| / ||D||: the relative change of D without the client; None for the only client."""


def client_influences(record: RoundRecord) -> dict[str, Influence]:
    """Influence of each client whose update was used; empty if D is not the weighted mean of the deltas.

    D without k is (D - w_k d_k) / (1 - w_k), so ||d_k||, ||D|| and the cosine between them suffice. With a strategy
    that is not a weighted mean (a median, added noise, a server optimizer) the shares do not sum to 1.
    """
    norm, used = record.param_update_norm, [c for c in record.contributions if c.weight > 0]
    if not norm or not used or any(c.cosine_to_mean is None for c in used):
        return {}
    shares = [c.weight * _projection(c) / norm for c in used]
    if abs(fsum(shares) - 1.0) > _TOLERANCE:
        return {}
    return {c.client: _influence(c, share, norm) for c, share in zip(used, shares, strict=True)}


def _projection(contribution: Contribution) -> float:
    """Length of the delta, as aggregated (clipped, if it was), in the direction of D."""
    return contribution.scale * contribution.update_norm * (contribution.cosine_to_mean or 0.0)


def _influence(contribution: Contribution, share: float, norm: float) -> Influence:
    weight, projection = contribution.weight, _projection(contribution)
    if 1.0 - weight <= 1e-12:
        return Influence(share=share, leave_one_out_shift=None)
    length = contribution.scale * contribution.update_norm
    distance_squared = max(length**2 - 2 * norm * projection + norm**2, 0.0)
    return Influence(share=share, leave_one_out_shift=weight / (1.0 - weight) * sqrt(distance_squared) / norm)

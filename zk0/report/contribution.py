"""What each client's update did to a round's step: exact, from the lengths and angles that the ledger holds."""

from math import fsum, sqrt

from zk0.records import Contribution, Record, RoundRecord

_TOLERANCE = 1e-4
"""How far the shares may miss 1 before the step is not the mean of the updates: rounding to float32 stays far below."""


class Influence(Record):
    """One client in the step D = sum of w_k d_k that a round took."""

    share: float
    """w_k <d_k, D> / ||D||^2: its part of the step. All parts together are 1; one that pulls back is below 0."""
    shift_without: float | None
    """||D - D without it|| / ||D||, leave-one-out: how far the step would have moved; None where it is alone."""
    cosine_without: float | None
    """Between D and D without it; None where it is alone, or nothing of the step is left."""


def influences(record: RoundRecord) -> dict[str, Influence]:
    """By client, of all whose update was used; empty where the step was not the weighted mean of the updates.

    D without k is (D - w_k d_k) / (1 - w_k), so that leaving one out needs no more than ||d_k||, ||D|| and the cosine
    between them. A strategy that is no mean (a median, noise, a step of the server's own) does not add up, and says so.
    """
    norm, used = record.param_update_norm, [c for c in record.contributions if c.weight > 0]
    if not norm or not used or any(c.cosine_to_mean is None for c in used):
        return {}
    shares = [c.weight * _along(c) / norm for c in used]
    if abs(fsum(shares) - 1.0) > _TOLERANCE:
        return {}
    return {c.client: _influence(c, share, norm) for c, share in zip(used, shares, strict=True)}


def _along(one: Contribution) -> float:
    """Length of the update, as it entered the mean, along the step."""
    return one.scale * one.update_norm * (one.cosine_to_mean or 0.0)


def _influence(one: Contribution, share: float, norm: float) -> Influence:
    rest = 1.0 - one.weight
    if rest <= 1e-12:
        return Influence(share=share, shift_without=None, cosine_without=None)
    length = one.scale * one.update_norm
    apart = max(length**2 - 2 * norm * _along(one) + norm**2, 0.0)
    left = max(norm**2 - 2 * one.weight * norm * _along(one) + (one.weight * length) ** 2, 0.0)
    along = (norm - one.weight * _along(one)) / sqrt(left) if left > 0 else None
    return Influence(
        share=share,
        shift_without=one.weight / rest * sqrt(apart) / norm,
        cosine_without=None if along is None else max(-1.0, min(1.0, along)),
    )

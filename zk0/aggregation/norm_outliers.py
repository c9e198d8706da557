"""Updates whose delta is much longer than those of the others: one of them would dominate the mean."""

from collections.abc import Mapping
from statistics import median


def norm_outliers(norms: Mapping[str, float], factor: float) -> dict[str, str]:
    """Return the clients whose delta norm exceeds `factor` times the median, each with the reason.

    Fewer than half of the clients cannot move the median. With two clients there is no majority, and none is returned.

    Args:
        norms: L2 norm of each client's delta.
        factor: `aggregation.quarantine_factor`; 0: no client is an outlier.

    >>> norm_outliers({"a": 1.0, "b": 1.2, "c": 500.0}, factor=100.0)
    {'c': 'norm outlier: its delta norm 500 is 417 times the median 1.2 of this round; expected at most 100 times'}
    """
    middle = median(norms.values()) if norms else 0.0
    if factor == 0 or middle == 0 or len(norms) < 3:
        return {}
    return {
        client: f"norm outlier: its delta norm {norm:.4g} is {norm / middle:.3g} times the median {middle:.4g} of this "
        f"round; expected at most {factor:g} times"
        for client, norm in norms.items()
        if norm > factor * middle
    }

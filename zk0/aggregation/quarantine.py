"""Updates that are out of all proportion: one of them would be the whole mean."""

from collections.abc import Mapping
from statistics import median


def outliers(norms: Mapping[str, float], factor: float) -> dict[str, str]:
    """Clients whose step is longer than `factor` times the median of all, each with the reason; 0: none.

    The median is not moved by fewer than half of the clients; of two, neither can be told from the other, and none is
    named.

    >>> outliers({"a": 1.0, "b": 1.2, "c": 500.0}, factor=100.0)
    {'c': 'its step is 500 long, 417 times the median 1.2 of this round; expected at most 100 times'}
    """
    middle = median(norms.values()) if norms else 0.0
    if factor == 0 or middle == 0 or len(norms) < 3:
        return {}
    return {
        client: f"its step is {norm:.4g} long, {norm / middle:.3g} times the median {middle:.4g} of this round; "
        f"expected at most {factor:g} times"
        for client, norm in norms.items()
        if norm > factor * middle
    }

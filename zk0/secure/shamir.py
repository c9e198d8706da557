"""Shamir's secret sharing (How to share a secret, CACM 22(11), 1979) over the integers modulo a prime."""

from collections.abc import Iterable, Mapping
from math import prod
from secrets import randbelow

PRIME = 2**521 - 1
"""A Mersenne prime above every secret of 64 bytes."""


def split_secret(secret: int, points: Iterable[int], threshold: int, prime: int = PRIME) -> dict[int, int]:
    """Return the share of a secret at each point; `threshold` of them give the secret, fewer say nothing about it.

    Args:
        secret: at least 0, below the prime.
        points: distinct, above 0 and below the prime.
        threshold: at least 1.
        prime: the modulus.
    """
    if not 0 <= secret < prime or threshold < 1:
        raise ValueError(f"a secret of {secret.bit_length()} bits, threshold {threshold}; expected 0 <= secret < prime")
    return evaluate_polynomial([secret, *(randbelow(prime) for _ in range(threshold - 1))], points, prime)


def evaluate_polynomial(coefficients: list[int], points: Iterable[int], prime: int = PRIME) -> dict[int, int]:
    """Return the values of a polynomial, its constant term first, at points modulo a prime.

    >>> evaluate_polynomial([1234, 166, 94], [1, 2, 3, 4, 5, 6], 1613)
    {1: 1494, 2: 329, 3: 965, 4: 176, 5: 1188, 6: 775}
    """
    values = {}
    for point in points:
        if not 0 < point < prime:
            raise ValueError(f"a share at point {point}, expected 1 or more, below the prime")
        value = 0
        for coefficient in reversed(coefficients):
            value = (value * point + coefficient) % prime
        values[point] = value
    return values


def join_shares(shares: Mapping[int, int], prime: int = PRIME) -> int:
    """Return the secret of as many shares as the threshold, by point: the polynomial's value at 0 (Lagrange).

    >>> join_shares({2: 329, 4: 176, 5: 1188}, 1613)
    1234
    """
    total = 0
    for point, share in shares.items():
        others = [other for other in shares if other != point]
        numerator = prod(-other for other in others)
        denominator = prod(point - other for other in others)
        total += share * numerator * pow(denominator, -1, prime)
    return total % prime

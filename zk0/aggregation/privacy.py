"""Differential privacy of each client's whole contribution (DP-FedAvg, arXiv 1710.06963), the server being trusted.

Every update's step is clipped to `clip_norm`, every client counts the same, and Gaussian noise of standard deviation
`noise_multiplier * clip_norm / clients` is added to each coordinate of the mean. Two rounds are neighbours if one
client's step is nothing in one of them, so the mean's sensitivity is `clip_norm / clients`.
"""

import hashlib
import hmac
import os
from collections.abc import Callable, Sequence
from math import sqrt
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from zk0.aggregation.blocks import Block
from zk0.errors import CheckpointError
from zk0.records import PrivacySpent, Update
from zk0.session import AggregationSettings

_SECRET_BYTES = 32


def session_secret(path: Path, settings: AggregationSettings) -> bytes:
    """What a session's noise is drawn from: 32 random bytes in a file that only its owner can read; made at need.

    A seed that others know would let them take the noise away again. A round that is done again from the same updates
    gets the same noise, so a resumed session ends as an undisturbed one.

    Raises:
        CheckpointError: the file is there and is not such a secret.
    """
    if settings.noise_multiplier == 0:
        return b""
    if not path.exists():
        half = path.with_name(f".{path.name}.tmp")
        half.unlink(missing_ok=True)
        with os.fdopen(os.open(half, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(os.urandom(_SECRET_BYTES))
            file.flush()
            os.fsync(file.fileno())
        half.replace(path)
    if len(secret := path.read_bytes()) != _SECRET_BYTES:
        raise CheckpointError(
            f"{path}: {len(secret)} bytes, expected {_SECRET_BYTES}; delete it, later rounds then draw from a new one"
        )
    return secret


def noise_std(settings: AggregationSettings, clients: int) -> float:
    """Of each coordinate of the mean; 0 without noise.

    >>> noise_std(AggregationSettings(clip_norm=2.0, noise_multiplier=0.5, quarantine_factor=0), clients=4)
    0.25
    """
    return settings.noise_multiplier * (settings.clip_norm or 0.0) / clients


def gaussian_noise(std: float, secret: bytes, updates: Sequence[Update]) -> Callable[[Block], NDArray[np.float64]]:
    """Noise for a block of the mean of these updates; of others it is independent."""
    told = "/".join(f"{update.client} {update.round} {update.digest}" for update in updates)
    key = hmac.digest(secret, told.encode(), "sha256")

    def of_block(block: Block) -> NDArray[np.float64]:
        drawn = hmac.digest(key, f"{block.start} {block.name}".encode(), hashlib.sha256)
        generator = np.random.Generator(np.random.Philox(key=int.from_bytes(drawn[:16])))
        return generator.normal(0.0, std, block.length)

    return of_block


def spent(settings: AggregationSettings, clients: int, before: PrivacySpent | None) -> PrivacySpent | None:
    """What is spent after one more round; None without noise.

    Rounds of the same noise multiplier z compose to one Gaussian mechanism of z / sqrt(rounds), whose epsilon is exact
    (arXiv 1805.06530, theorem 8). Nothing is taken off for rounds that a client does not take part in.
    """
    if settings.noise_multiplier == 0 or settings.clip_norm is None:
        return None
    from dp_accounting import get_epsilon_gaussian  # takes seconds

    rounds = 1 + (before.rounds if before else 0)
    return PrivacySpent(
        rounds=rounds,
        clients=clients,
        clip_norm=settings.clip_norm,
        noise_multiplier=settings.noise_multiplier,
        noise_std=noise_std(settings, clients),
        epsilon=float(get_epsilon_gaussian(settings.noise_multiplier / sqrt(rounds), settings.privacy_delta)),
        delta=settings.privacy_delta,
    )

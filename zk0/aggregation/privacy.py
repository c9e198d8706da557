"""Client-level differential privacy with a trusted server (DP-FedAvg, arXiv 1710.06963).

Every update's delta is clipped to `clip_norm`, every client has the same weight, and Gaussian noise of standard
deviation `noise_multiplier * clip_norm / clients` is added to each coordinate of the mean. Two rounds are neighbors if
one client's delta is zero in one of them, so the sensitivity of the mean is `clip_norm / clients`.
"""

import hashlib
import hmac
import os
from collections.abc import Callable, Sequence
from math import sqrt
from pathlib import Path

import numpy as np

from zk0.aggregation.arrays import Float64Array
from zk0.aggregation.blocks import Block
from zk0.errors import CheckpointError
from zk0.records import PrivacySpent, Update
from zk0.settings.aggregation_settings import AggregationSettings
from zk0.storage.atomic import atomic_write_bytes

_SECRET_BYTES = 32


def session_secret(path: Path, settings: AggregationSettings) -> bytes:
    """Return the key of a session's noise, 32 random bytes; write it to `path`, readable by its owner only, if new.

    Whoever knows the key can subtract the noise, so it is not derived from the session's public seed. It is stored so
    that a round that is repeated from the same updates gets the same noise, and a resumed session ends with the same
    weights. Without noise there is no key, and the result is empty.

    Raises:
        CheckpointError: the file exists and is not such a key.
    """
    if settings.noise_multiplier == 0:
        return b""
    if not path.exists():
        atomic_write_bytes(path, os.urandom(_SECRET_BYTES), mode=0o600)
    if len(secret := path.read_bytes()) != _SECRET_BYTES:
        raise CheckpointError(
            f"{path}: {len(secret)} bytes, expected {_SECRET_BYTES}; delete the file, and later rounds use a new key"
        )
    return secret


def noise_std(settings: AggregationSettings, clients: int) -> float:
    """Return the standard deviation of the noise on each coordinate of the mean; 0 without noise.

    >>> noise_std(AggregationSettings(clip_norm=2.0, noise_multiplier=0.5, quarantine_factor=0), clients=4)
    0.25
    """
    return settings.noise_multiplier * (settings.clip_norm or 0.0) / clients


def gaussian_noise(std: float, secret: bytes, updates: Sequence[Update]) -> Callable[[Block], Float64Array]:
    """Return a function that computes the noise of a block of the mean of these updates.

    The noise is a function of key, updates and block; noise of other updates or blocks is independent of it.
    """
    identity = "/".join(f"{update.client} {update.round} {update.digest}" for update in updates)
    key = hmac.digest(secret, identity.encode(), "sha256")

    def noise_of_block(block: Block) -> Float64Array:
        seed = hmac.digest(key, f"{block.start} {block.name}".encode(), hashlib.sha256)
        generator = np.random.Generator(np.random.Philox(key=int.from_bytes(seed[:16])))
        return generator.normal(0.0, std, block.length)

    return noise_of_block


def privacy_spent(settings: AggregationSettings, clients: int, previous: PrivacySpent | None) -> PrivacySpent | None:
    """Return the privacy budget spent after one more round; None without noise.

    Rounds of the same noise multiplier z compose to one Gaussian mechanism of z / sqrt(rounds), whose epsilon is exact
    (arXiv 1805.06530, theorem 8). Rounds that a client does not take part in count like the others.

    Args:
        settings: clip norm, noise multiplier and delta.
        clients: number of updates in the mean of this round.
        previous: the budget spent before this round.
    """
    if settings.noise_multiplier == 0 or settings.clip_norm is None:
        return None
    from dp_accounting import get_epsilon_gaussian  # its import takes seconds

    rounds = 1 + (previous.rounds if previous else 0)
    return PrivacySpent(
        rounds=rounds,
        clients=clients,
        clip_norm=settings.clip_norm,
        noise_multiplier=settings.noise_multiplier,
        noise_std=noise_std(settings, clients),
        epsilon=float(get_epsilon_gaussian(settings.noise_multiplier / sqrt(rounds), settings.privacy_delta)),
        delta=settings.privacy_delta,
    )

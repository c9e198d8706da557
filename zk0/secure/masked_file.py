"""The file of a masked update: a client's deltas on the grid, clipped, with its metrics, and masked block by block."""

from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np

from zk0.errors import UpdateError
from zk0.records import ClientMetrics, DigestAlgorithm
from zk0.secure.mask_streams import Mask, MaskStreams
from zk0.secure.messages import Roster
from zk0.weights.files import WeightsFile, open_weights
from zk0.weights.fixed_point import encoded_blocks, masked_specs
from zk0.weights.writer import open_weights_writer


def save_masked(
    target: Path,
    deltas: Path,
    metrics: ClientMetrics,
    place: tuple[Roster, str],
    masks: list[Mask],
    algorithm: DigestAlgorithm,
) -> str:
    """Write a client's masked update, and return its digest. Memory is a few blocks.

    Args:
        target: the file.
        deltas: file of the client's deltas, float32.
        metrics: of its training.
        place: the roster, and the client's name in it.
        masks: of the client.
        algorithm: of the digest.

    Raises:
        UpdateError: a delta is not finite, or the grid is too coarse for the norm that deltas are clipped to.
        CheckpointError: a file that cannot be read.
    """
    roster, name = place
    share, streams = roster.mean_shares[name], MaskStreams(masks)
    with open_weights(deltas) as file:
        scale = _clip_scale(file, roster, share)
        specs = masked_specs(file.specs, roster.common.rules.bits)
        with open_weights_writer(target, specs, durable=False, algorithm=algorithm) as writer:
            for words in encoded_blocks(writer.names, file, roster.grid, share, scale, metrics):
                streams.apply(words)
                writer.write(words)
    return writer.digest


def _clip_scale(file: WeightsFile, roster: Roster, share: float) -> float:
    """Return the factor for a delta so that what is sent has at most the norm `share * clip_norm`, with its rounding.

    Raises:
        UpdateError: a delta is not finite, or rounding alone changes it by more than this.
    """
    values = sum(spec.size for spec in file.specs.values())
    norm = sqrt(sum(_squared_norm(file, name) for name in file.specs))
    if (clip_norm := roster.common.rules.clip_norm) is None:
        return 1.0
    if (largest := clip_norm - roster.grid.rounding_error(values) / share) <= 0:
        raise UpdateError(
            f"the grid of {roster.common.rules.bits} bits changes a delta by up to {clip_norm - largest:.3g}, and "
            f"aggregation.clip_norm is {clip_norm:g}; expected federation.secure_bits 32"
        )
    return min(1.0, largest / norm) if norm else 1.0


def _squared_norm(file: WeightsFile, name: str) -> float:
    total: Any = np.float64(0)
    for block in file.blocks(name):
        total += np.square(block, dtype=np.float64).sum()
    if not np.isfinite(total):
        raise UpdateError(f"tensor {name} holds numbers that are not finite")
    return float(total)

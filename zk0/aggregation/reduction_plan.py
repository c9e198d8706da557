"""How the updates of one round become new global weights: the strategy's part, clipping and noise."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zk0.aggregation.arrays import Float64Array
from zk0.aggregation.blocks import Block
from zk0.aggregation.frame_caps import capped_frames
from zk0.aggregation.norms import delta_norms, squared_distances
from zk0.aggregation.open_round import OpenRound
from zk0.aggregation.privacy import gaussian_noise, noise_std
from zk0.aggregation.stale_updates import StaleStart
from zk0.aggregation.strategy import Strategy, equal_weights
from zk0.errors import UpdateError
from zk0.settings.aggregation_settings import AggregationSettings

Combine = Callable[[NDArray[Any], Float64Array], Float64Array]
"""From the updates' values (updates, n) and weights (updates,) to combined values (n,)."""
ServerStep = Callable[[Float64Array, NDArray[Any], list[Float64Array]], tuple[Float64Array, list[Float64Array]]]
"""From combined values (n,), old values (n,) and the server's state, to new values and new state."""


@dataclass(frozen=True)
class AggregationTerms:
    """Everything besides the updates that decides the new global weights of a round."""

    settings: AggregationSettings = field(default_factory=AggregationSettings)
    round: int = 1
    state: Mapping[str, Path] = field(default_factory=dict)
    """Files of the server's state after the previous round, by slot; a slot without a file is zero."""
    clients: int = 0
    """Number of clients in the session, whether they took part or not (SCAFFOLD); 0: as many as updates."""
    secret: bytes = b""
    """The key of the noise (`zk0.aggregation.privacy.session_secret`)."""
    max_share_factor: float = 0.0
    """Limit of a client's frames, as a multiple of the round's lower median (`capped_frames`); 0: none. A session sets
    its `aggregation.max_share_factor` here."""
    stale: Mapping[str, StaleStart] = field(default_factory=dict)
    """By client: what updates were trained from that began in an earlier round."""


@dataclass(frozen=True)
class ReductionPlan:
    """How blocks of values are reduced: scale each update's delta, combine, add noise, take the server step."""

    combine: Combine
    server_step: ServerStep
    weights: Float64Array
    """(updates,), for `combine`."""
    scales: Float64Array
    """(updates,), factors by which clipping and staleness shorten the deltas; 1 where they do not."""
    noise: Callable[[Block], Float64Array] | None = None
    """Computes what is added to the combined values of a block."""


def plan_reduction(
    open_round: OpenRound, strategy: Strategy, terms: AggregationTerms, threads: int = 1
) -> ReductionPlan:
    """Return the plan for the updates of a round; reads them once more where clipping or the strategy needs it.

    Raises:
        UpdateError: fewer updates than the strategy needs.
    """
    settings, count = terms.settings, len(open_round.updates)
    if count < (needed := strategy.min_updates()):
        raise UpdateError(f"{count} updates, expected at least {needed} for {strategy.name}")
    counts = [update.examples for update in open_round.updates]
    examples = np.array(capped_frames(counts, terms.max_share_factor), np.float64)
    equal = settings.weighting == "equal" or settings.noise_multiplier > 0
    is_sum = any(update.summed for update in open_round.updates)
    clips = settings.clip_norm is not None and not is_sum  # the clients have clipped the updates in a sum
    std = noise_std(settings, sum(update.client_count for update in open_round.updates))
    factors = [terms.stale[u.client].factor if u.client in terms.stale else 1.0 for u in open_round.updates]
    return ReductionPlan(
        combine=strategy.combine,
        server_step=partial(strategy.server_step, round_number=terms.round),
        weights=strategy.update_weights(
            equal_weights(examples) if equal else examples, partial(squared_distances, open_round, threads)
        ),
        scales=np.array(factors)
        * (clip_scales(delta_norms(open_round, threads), settings.clip_norm or 0.0) if clips else 1.0),
        noise=gaussian_noise(std, terms.secret, open_round.updates) if std else None,
    )


def clip_scales(norms: tuple[float, ...], clip_norm: float) -> Float64Array:
    """Return the factor for each delta so that no norm exceeds `clip_norm` (arXiv 1710.06963, section 2).

    >>> clip_scales((0.5, 4.0), 1.0)
    array([1.  , 0.25])
    """
    return np.array([1.0 if norm <= clip_norm else clip_norm / norm for norm in norms])

"""What a strategy does with the updates of a round."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from zk0.aggregation.combine import Combine, median, trimmed_mean, weighted_mean
from zk0.aggregation.fold import Recipe
from zk0.aggregation.krum import best, krum_scores
from zk0.aggregation.opened import Opened
from zk0.aggregation.privacy import gaussian_noise, noise_std
from zk0.aggregation.server_step import Values, server_step
from zk0.aggregation.survey import squared_distances, step_norms
from zk0.errors import UpdateError
from zk0.session import AggregationSettings


@dataclass(frozen=True)
class Terms:
    """What besides the updates decides the new weights of a round."""

    settings: AggregationSettings = field(default_factory=AggregationSettings)
    round: int = 1
    state: Mapping[str, Path] = field(default_factory=dict)
    """The server optimizer's state after the round before, by slot; a slot that is not there is zero."""
    clients: int = 0
    """All that could have taken part; 0: those that did."""
    secret: bytes = b""
    """What noise is drawn from (`zk0.aggregation.privacy.session_secret`)."""


def recipe_of(opened: Opened, terms: Terms, threads: int = 1) -> Recipe:
    """The recipe of a strategy for the updates at hand; reads them once where it must know them first.

    Raises:
        UpdateError: too few updates for the strategy.
    """
    settings, count = terms.settings, len(opened.updates)
    least, std = settings.least_updates(), noise_std(settings, count)
    if count < least:
        raise UpdateError(f"{count} updates, expected at least {least} for {settings.strategy}")
    return Recipe(
        combine=_combine(settings),
        weights=_weights(opened, settings, threads),
        scales=clip_scales(step_norms(opened, threads), settings.clip_norm) if settings.clip_norm else np.ones(count),
        noise=gaussian_noise(std, terms.secret, opened.updates) if std else None,
        step=server_step(settings, terms.round),
    )


def clip_scales(norms: tuple[float, ...], clip_norm: float) -> Values:
    """What each step is multiplied by so that none is longer than `clip_norm` (arXiv 1710.06963, section 2).

    >>> clip_scales((0.5, 4.0), 1.0)
    array([1.  , 0.25])
    """
    return np.array([1.0 if norm <= clip_norm else clip_norm / norm for norm in norms])


def _combine(settings: AggregationSettings) -> Combine:
    if settings.strategy == "median":
        return median
    if settings.strategy == "trimmed_mean":
        return trimmed_mean(settings.trim_fraction)
    return weighted_mean


def _weights(opened: Opened, settings: AggregationSettings, threads: int) -> Values:
    """Of the updates in a mean: their examples, where the strategy selects them."""
    examples = np.array([update.examples for update in opened.updates], np.float64)
    if settings.strategy in ("median", "trimmed_mean", "scaffold") or settings.noise_multiplier:
        return np.ones(len(examples))
    if settings.strategy not in ("krum", "multi_krum"):
        return examples
    scores = krum_scores(squared_distances(opened, threads), settings.malicious)
    wanted = settings.selected or max(1, len(scores) - settings.malicious - 2)
    chosen = best(scores, 1 if settings.strategy == "krum" else wanted)
    return np.where(np.isin(np.arange(len(examples)), chosen), examples, 0.0)

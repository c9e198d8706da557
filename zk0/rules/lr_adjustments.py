"""Adjustments of the scheduled learning rate: of all clients by the evaluation loss, of one client by its own loss."""

from collections.abc import Mapping, Sequence
from statistics import fmean

from zk0.settings.training_settings import SchedulerSettings

DIVERGENCE_FACTOR = 1.05
STALL_FACTOR = 0.95
STALL_IMPROVEMENT = 0.01
"""Relative improvement over the window below which the loss stalls."""
BOUNDED_ROUNDS = 20
"""Before this round, `max_adjust_factor` bounds the adjustment of one round."""
SPIKE_LOSSES = 3


def is_spike(losses: Sequence[float], threshold: float) -> bool:
    """Whether the loss rose by more than `threshold` from the first to the last of the last three losses.

    >>> is_spike([9.0, 1.0, 1.0, 1.5], 0.5), is_spike([9.0, 1.0, 1.0, 1.625], 0.5), is_spike([1.0, 9.0], 0.5)
    (False, True, False)
    """
    return len(losses) >= SPIKE_LOSSES and losses[-1] - losses[-SPIKE_LOSSES] > threshold


def lr_adjustment(losses: Sequence[float], number: int, settings: SchedulerSettings) -> tuple[float, str]:
    """Factor of round `number` for the learning rates of all clients, and its reason.

    The improvement is (first - last) / first over the last `adjustment_window` evaluation losses. Divergence is tested
    before a stall, because every divergence is a stall too.

    Args:
        losses: evaluation losses, oldest first; empty if the last round was not evaluated.
        number: the round.
        settings: of the scheduler.

    >>> settings = SchedulerSettings(adjustment_window=2)
    >>> lr_adjustment([1.0, 2.0], 30, settings)
    (1.05, 'diverging: evaluation loss from 1 to 2 over 2 evaluations, x1.05')
    >>> lr_adjustment([1.0, 0.995], 30, settings)
    (0.95, 'stalled: evaluation loss from 1 to 0.995 over 2 evaluations, x0.95')
    >>> lr_adjustment([1.0, 0.5], 30, settings)
    (1.0, 'improving: evaluation loss from 1 to 0.5 over 2 evaluations')
    >>> lr_adjustment([1.0], 30, settings)
    (1.0, 'no lr adjustment: 1 new evaluation losses, expected 2')
    """
    if len(losses) < settings.adjustment_window:
        return 1.0, f"no lr adjustment: {len(losses)} new evaluation losses, expected {settings.adjustment_window}"
    first, last = losses[-settings.adjustment_window], losses[-1]
    improvement = (first - last) / max(first, 1e-8)
    trend = f"evaluation loss from {first:.4g} to {last:.4g} over {settings.adjustment_window} evaluations"
    if improvement < -settings.spike_threshold:
        name, factor = "diverging", DIVERGENCE_FACTOR
    elif improvement < STALL_IMPROVEMENT:
        name, factor = "stalled", STALL_FACTOR
    else:
        return 1.0, f"improving: {trend}"
    if number < BOUNDED_ROUNDS:
        factor = clamp(factor, 1 / settings.max_adjust_factor, settings.max_adjust_factor)
    return factor, f"{name}: {trend}, x{factor:.4g}"


def boosted_clients(losses: Mapping[str, float], settings: SchedulerSettings) -> dict[str, float]:
    """Learning rate factor of each client whose loss exceeds `high_loss_multiplier` times the mean of all clients.

    >>> losses = {"a": 1.0, "b": 1.0, "c": 7.0}
    >>> boosted_clients(losses, SchedulerSettings(adaptive_lr_enabled=True))
    {'c': 1.15}
    >>> boosted_clients(losses, SchedulerSettings())
    {}
    """
    if not (settings.adaptive_lr_enabled and losses) or settings.lr_boost_factor == 1:
        return {}
    bound = settings.high_loss_multiplier * fmean(losses.values())
    return {client: settings.lr_boost_factor for client, loss in sorted(losses.items()) if loss > bound}


def clamp(value: float, low: float, high: float) -> float:
    """The value, limited to the range from `low` to `high`."""
    return max(low, min(high, value))

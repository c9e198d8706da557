"""Learning rate schedules: over the rounds of a session, and over the optimizer steps of one round.

They equal the schedulers of PyTorch that they are named after.
"""

from collections.abc import Sequence
from math import cos, inf, pi

from zk0.settings.session import Session

PLATEAU_FACTOR = 0.5
PLATEAU_THRESHOLD = 1e-4
"""Smallest relative decrease of the loss that counts as an improvement; PyTorch's default."""
PLATEAU_EPS = 1e-8
"""Smallest change of the learning rate that is applied; PyTorch's default."""


def scheduled_lr(session: Session, number: int, losses: Sequence[float]) -> float:
    """Learning rate at the start of a round, before adjustments; at least `eta_min`.

    Args:
        session: its training and scheduler settings.
        number: the round.
        losses: evaluation losses so far, oldest first.
    """
    settings, lr = session.scheduler, session.training.lr
    if settings.type == "cosine_warm_restarts":
        lr = warm_restart_lr(lr, settings.eta_min, number, settings.restart_rounds, settings.restart_factor)
    elif settings.type == "reduce_on_plateau":
        lr = plateau_lr(lr, settings.eta_min, losses, settings.stall_patience)
    return max(lr, settings.eta_min)


def step_lr(lr: float, eta_min: float, scheduler_type: str, step: int, steps: int) -> float:
    """Learning rate of optimizer step `step` (0 is the first) out of `steps` of a round that starts at `lr`.

    With `cosine` it decreases from `lr` to `eta_min`, which step number `steps` would have (SGDR, arXiv 1608.03983,
    eq. 5; torch's CosineAnnealingLR with T_max = steps). The other two types are constant within a round.

    >>> [step_lr(1.0, 0.0, "cosine", step, 4) for step in range(3)]
    [1.0, 0.8535533905932737, 0.5]
    >>> step_lr(1.0, 0.0, "reduce_on_plateau", 3, 4)
    1.0
    """
    if not 0 <= step <= steps:
        raise ValueError(f"step {step} of {steps}, expected 0 to {steps}")
    return _annealed(lr, eta_min, step / steps) if scheduler_type == "cosine" and step else lr


def warm_restart_lr(lr: float, eta_min: float, number: int, restart_rounds: int, restart_factor: int) -> float:
    """Learning rate of round `number` (from 1): cosine annealing over rounds, restarted after `restart_rounds` rounds.

    Each further period is `restart_factor` times as long (SGDR, arXiv 1608.03983, eq. 5; torch's
    CosineAnnealingWarmRestarts, whose epoch is `number - 1`).

    >>> [warm_restart_lr(1.0, 0.0, number, 2, 2) for number in range(1, 9)]
    [1.0, 0.5, 1.0, 0.8535533905932737, 0.5, 0.14644660940672627, 1.0, 0.9619397662556434]
    """
    position, length = number - 1, restart_rounds
    while position >= length:
        position -= length
        length *= restart_factor
    return _annealed(lr, eta_min, position / length)


def plateau_lr(lr: float, eta_min: float, losses: Sequence[float], patience: int) -> float:
    """Learning rate after these evaluation losses: halved whenever the loss stops improving.

    A loss improves if it is below (1 - 1e-4) times the best loss so far. After more than `patience` losses in a row
    without improvement, the learning rate is halved and the count restarts. A halving that `eta_min` limits to less
    than 1e-8 is not applied. This is torch's ReduceLROnPlateau(factor=0.5, patience=patience, min_lr=eta_min).

    >>> plateau_lr(1.0, 0.0, [3.0, 2.0, 2.0, 2.0], patience=2)
    1.0
    >>> plateau_lr(1.0, 0.0, [3.0, 2.0, 2.0, 2.0, 2.0], patience=2)
    0.5
    """
    best, bad = inf, 0
    for loss in losses:
        bad += 1
        if loss < best * (1 - PLATEAU_THRESHOLD):
            best, bad = loss, 0
        if bad > patience:
            halved, bad = max(lr * PLATEAU_FACTOR, eta_min), 0
            lr = halved if lr - halved > PLATEAU_EPS else lr
    return lr


def _annealed(lr: float, eta_min: float, fraction: float) -> float:
    """Cosine annealing from `lr` (fraction 0) to `eta_min` (fraction 1)."""
    return eta_min + (lr - eta_min) * (1 + cos(pi * fraction)) / 2

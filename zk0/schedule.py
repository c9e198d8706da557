"""Learning rate and mu of the next round, from the session and what its rounds left behind.

A server loss is the policy loss of a judged round, round 0 (the start) included; rounds that were not judged have
none and are left out. Client losses are those of the last round: losses of different rounds do not compare.
"""

from collections.abc import Sequence
from math import cos, inf, pi
from statistics import fmean, pstdev

from zk0.records import Decision, RoundRecord
from zk0.session import SchedulerSettings, Session

DIVERGENCE_FACTOR = 1.05
STALL_FACTOR = 0.95
STALL_IMPROVEMENT = 0.01
LR_CEILING = 10.0
"""Times the session's lr."""
CAREFUL_ROUNDS = 20
"""Before this round, `max_adjust_factor` bounds what one round may change."""
SPIKE_LOSSES = 3
PLATEAU_FACTOR = 0.5
PLATEAU_THRESHOLD = 1e-4
"""Relative; an improvement smaller than this is none. PyTorch's default."""
PLATEAU_EPS = 1e-8
"""A smaller change of lr is not made. PyTorch's default."""


def decide(session: Session, history: Sequence[RoundRecord]) -> Decision:
    """Learning rate, mu and their reason for the round after the last of `history` (round 1 if it is empty)."""
    number = history[-1].next_round if history else 1
    losses = server_losses(history)
    clients = {u.client: u.metrics.policy_loss for u in history[-1].updates} if history else {}

    planned = scheduled_lr(session, number, losses)
    held = _hold(losses, session.scheduler)
    factor, trend = _global_factor(session, number, history, held)
    lr = _within(planned * factor, session.scheduler.eta_min, LR_CEILING * session.training.lr)
    boosted = {} if held else boosted_clients(clients, session.scheduler)
    mu, mu_reason = round_mu(session, number, list(clients.values()))

    reasons = [f"{session.scheduler.type} lr {planned:.3g}", *held, *trend]
    if lr != planned:
        reasons.append(f"all adjustments so far x{factor:.4g}, lr {lr:.3g}")
    for client, boost in boosted.items():
        mean = fmean(clients.values())
        reasons.append(f"{client} lost {clients[client]:.4g} against a mean of {mean:.4g}: its lr x{boost:g}")
    return Decision(
        round=number,
        lr=lr,
        mu=mu,
        lr_factor=factor,
        client_lr_factors={client: _bounded_boost(session, lr, boost) for client, boost in boosted.items()},
        reason="; ".join([*reasons, mu_reason]),
    )


def server_losses(history: Sequence[RoundRecord]) -> list[float]:
    """The policy losses of the judged rounds, oldest first."""
    return [record.evaluation.policy_loss for record in history if record.evaluation is not None]


def client_lr(decision: Decision, client: str) -> float:
    """The learning rate with which one client starts the round.

    >>> boosted = Decision(round=3, lr=0.01, mu=0.0, client_lr_factors={"b": 1.5}, reason="")
    >>> client_lr(boosted, "a"), client_lr(boosted, "b")
    (0.01, 0.015)
    """
    return decision.lr * decision.client_lr_factors.get(client, 1.0)


# ── the schedule ──────────────────────────────────────────────────────────────


def scheduled_lr(session: Session, number: int, server_losses: Sequence[float]) -> float:
    """The lr with which round `number` starts before any adjustment; never under eta_min."""
    settings, lr = session.scheduler, session.training.lr
    if settings.type == "cosine_warm_restarts":
        lr = warm_restart_lr(lr, settings.eta_min, number, settings.restart_rounds, settings.restart_factor)
    elif settings.type == "reduce_on_plateau":
        lr = plateau_lr(lr, settings.eta_min, server_losses, settings.stall_patience)
    return max(lr, settings.eta_min)


def step_lr(lr: float, eta_min: float, scheduler_type: str, step: int, steps: int) -> float:
    """The lr of optimizer step `step` (0 is the first) out of `steps` of a round that starts at `lr`.

    With `cosine` it falls from `lr` to `eta_min`, which step number `steps` would have (SGDR, arXiv 1608.03983,
    eq. 5; torch's CosineAnnealingLR with T_max = steps). The other two are constant within a round.

    >>> [step_lr(1.0, 0.0, "cosine", step, 4) for step in range(3)]
    [1.0, 0.8535533905932737, 0.5]
    >>> step_lr(1.0, 0.0, "reduce_on_plateau", 3, 4)
    1.0
    """
    if not 0 <= step <= steps:
        raise ValueError(f"step {step} of {steps}, expected 0 to {steps}")
    return _annealed(lr, eta_min, step / steps) if scheduler_type == "cosine" and step else lr


def warm_restart_lr(lr: float, eta_min: float, number: int, restart_rounds: int, restart_factor: int) -> float:
    """The lr of round `number` (from 1): cosine over rounds that starts again after `restart_rounds` rounds.

    Each further stretch is `restart_factor` times as long (SGDR, arXiv 1608.03983, eq. 5; torch's
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
    """The lr after these losses, one for each judged round: halved whenever they stopped falling.

    A loss improves if it is under the best one so far times (1 - 1e-4). `patience` losses in a row without an
    improvement are tolerated, one more halves the lr and the count starts anew; a halving that eta_min leaves less
    than 1e-8 of is not made. This is torch's ReduceLROnPlateau(factor=0.5, patience=patience, min_lr=eta_min).

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


# ── adjustments ───────────────────────────────────────────────────────────────


def is_spike(losses: Sequence[float], threshold: float) -> bool:
    """True if the loss rose by more than `threshold` from the first to the last of the last three.

    >>> is_spike([9.0, 1.0, 1.0, 1.5], 0.5), is_spike([9.0, 1.0, 1.0, 1.625], 0.5), is_spike([1.0, 9.0], 0.5)
    (False, True, False)
    """
    return len(losses) >= SPIKE_LOSSES and losses[-1] - losses[-SPIKE_LOSSES] > threshold


def global_adjustment(losses: Sequence[float], number: int, settings: SchedulerSettings) -> tuple[float, str]:
    """What round `number` multiplies all learning rates with, and why.

    The improvement is (first - last) / first over the last `adjustment_window` losses. Divergence is tested first:
    every divergence is a stall too. No losses mean that the last round was not judged: nothing new is known.

    >>> settings = SchedulerSettings(adjustment_window=2)
    >>> global_adjustment([1.0, 2.0], 30, settings)
    (1.05, 'diverging: server loss from 1 to 2 over 2 judged rounds, x1.05')
    >>> global_adjustment([1.0, 0.995], 30, settings)
    (0.95, 'stalled: server loss from 1 to 0.995 over 2 judged rounds, x0.95')
    >>> global_adjustment([1.0, 0.5], 30, settings)
    (1.0, 'improving: server loss from 1 to 0.5 over 2 judged rounds')
    >>> global_adjustment([1.0], 30, settings)
    (1.0, 'no lr adjustment: 1 new server losses, expected 2')
    """
    if len(losses) < settings.adjustment_window:
        return 1.0, f"no lr adjustment: {len(losses)} new server losses, expected {settings.adjustment_window}"
    first, last = losses[-settings.adjustment_window], losses[-1]
    improvement = (first - last) / max(first, 1e-8)
    trend = f"server loss from {first:.4g} to {last:.4g} over {settings.adjustment_window} judged rounds"
    if improvement < -settings.spike_threshold:
        name, factor = "diverging", DIVERGENCE_FACTOR
    elif improvement < STALL_IMPROVEMENT:
        name, factor = "stalled", STALL_FACTOR
    else:
        return 1.0, f"improving: {trend}"
    if number < CAREFUL_ROUNDS:
        factor = _within(factor, 1 / settings.max_adjust_factor, settings.max_adjust_factor)
    return factor, f"{name}: {trend}, x{factor:.4g}"


def boosted_clients(losses: dict[str, float], settings: SchedulerSettings) -> dict[str, float]:
    """The lr factor of each client that lags behind: its loss is more than `high_loss_multiplier` times the mean.

    >>> lagging = {"a": 1.0, "b": 1.0, "c": 7.0}
    >>> boosted_clients(lagging, SchedulerSettings(adaptive_lr_enabled=True))
    {'c': 1.15}
    >>> boosted_clients(lagging, SchedulerSettings())
    {}
    """
    if not (settings.adaptive_lr_enabled and losses) or settings.lr_boost_factor == 1:
        return {}
    bound = settings.high_loss_multiplier * fmean(losses.values())
    return {client: settings.lr_boost_factor for client, loss in sorted(losses.items()) if loss > bound}


def round_mu(session: Session, number: int, client_losses: Sequence[float]) -> tuple[float, str]:
    """The proximal mu of round `number`, and why: never compounding, never under mu_min once it is adjusted.

    `client_losses` are those of the last round. A session that asks for mu 0 (FedAvg) keeps it.
    """
    settings, mu = session.scheduler, session.training.proximal_mu
    adaptive = settings.adaptive_mu_enabled and len(client_losses) >= 2
    why = "as set"
    if adaptive:
        spread = pstdev(client_losses)
        far = spread > settings.loss_std_threshold
        mu *= settings.mu_adjust_factor if far else 1.0
        why = f"client losses spread {spread:.4g}, {'over' if far else 'not over'} {settings.loss_std_threshold:g}"
    if settings.mu_decay < 1:
        mu *= settings.mu_decay ** (number - 1)
        why += f", decayed by {settings.mu_decay:g} a round"
    if mu > 0 and (adaptive or settings.mu_decay < 1):
        mu = max(mu, settings.mu_min)
    return mu, f"mu {mu:.4g} ({why})"


def _hold(losses: Sequence[float], settings: SchedulerSettings) -> list[str]:
    if not (settings.dynamic_training_decay or settings.adaptive_lr_enabled):
        return []
    if not is_spike(losses, settings.spike_threshold):
        return []
    rise = f"server loss rose from {losses[-SPIKE_LOSSES]:.4g} to {losses[-1]:.4g}"
    return [f"{rise}, by more than {settings.spike_threshold:g}: lr adjustments are held"]


def _global_factor(
    session: Session, number: int, history: Sequence[RoundRecord], held: list[str]
) -> tuple[float, list[str]]:
    """The product of all adjustments up to round `number`, and why its last one."""
    before = history[-1].decision.lr_factor if history and history[-1].decision else 1.0
    if held or not session.scheduler.dynamic_training_decay:
        return before, []
    judged = bool(history) and history[-1].evaluation is not None
    change, why = global_adjustment(server_losses(history) if judged else (), number, session.scheduler)
    # bounded itself, not only the lr: a factor that ran away under the floor would take as many rounds to come back
    return _within(before * change, session.scheduler.eta_min / session.training.lr, LR_CEILING), [why]


def _bounded_boost(session: Session, lr: float, boost: float) -> float:
    floor, ceiling = session.scheduler.eta_min, LR_CEILING * session.training.lr
    return boost if floor <= lr * boost <= ceiling else _within(lr * boost, floor, ceiling) / lr


def _annealed(lr: float, eta_min: float, share: float) -> float:
    return eta_min + (lr - eta_min) * (1 + cos(pi * share)) / 2


def _within(value: float, low: float, high: float) -> float:
    return max(low, min(high, value))

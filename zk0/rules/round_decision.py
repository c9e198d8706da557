"""Decision before each round: its learning rate and FedProx mu, from the settings and the history of the session.

Evaluation losses are the policy losses of the evaluated rounds, round 0 included; rounds without an evaluation are
left out. Client losses are the training losses of the last round only, because losses of different rounds are not
comparable.
"""

from collections.abc import Mapping, Sequence
from statistics import fmean, pstdev

from zk0.records import RoundDecision, RoundRecord
from zk0.rules.lr_adjustments import SPIKE_LOSSES, boosted_clients, clamp, is_spike, lr_adjustment
from zk0.rules.lr_schedules import scheduled_lr
from zk0.settings.session import Session
from zk0.settings.training_settings import SchedulerSettings

LR_CEILING = 10.0
"""Largest learning rate after adjustments, in multiples of the session's."""


def decide_round(session: Session, history: Sequence[RoundRecord]) -> RoundDecision:
    """Learning rates and mu of the round after the last one in `history` (round 1 if it is empty), with the reason."""
    number = history[-1].next_round if history else 1
    losses = evaluation_losses(history)
    clients = {u.client: u.metrics.policy_loss for u in history[-1].updates} if history else {}

    scheduled = scheduled_lr(session, number, losses)
    spike = _spike_reason(losses, session.scheduler)
    factor, trend = _lr_factor(session, number, history, spike)
    lr = clamp(scheduled * factor, session.scheduler.eta_min, LR_CEILING * session.training.lr)
    boosts = {} if spike else boosted_clients(clients, session.scheduler)
    mu, mu_reason = round_mu(session, number, list(clients.values()))

    reasons = [f"{session.scheduler.type} lr {scheduled:.3g}", *spike, *trend]
    if lr != scheduled:
        reasons.append(f"product of all adjustments x{factor:.4g}, lr {lr:.3g}")
    reasons += _boost_reasons(clients, boosts, session.scheduler)
    return RoundDecision(
        round=number,
        lr=lr,
        mu=mu,
        lr_factor=factor,
        client_lr_factors={client: _bounded_boost(session, lr, boost) for client, boost in boosts.items()},
        reason="; ".join([*reasons, mu_reason]),
    )


def evaluation_losses(history: Sequence[RoundRecord]) -> list[float]:
    """Policy losses of the evaluated rounds on the server's evaluation sets, oldest first."""
    return [record.evaluation.policy_loss for record in history if record.evaluation is not None]


def client_lr(decision: RoundDecision, client: str) -> float:
    """Learning rate with which one client starts the round.

    >>> decision = RoundDecision(round=3, lr=0.01, mu=0.0, client_lr_factors={"b": 1.5}, reason="")
    >>> client_lr(decision, "a"), client_lr(decision, "b")
    (0.01, 0.015)
    """
    return decision.lr * decision.client_lr_factors.get(client, 1.0)


def round_mu(session: Session, number: int, client_losses: Sequence[float]) -> tuple[float, str]:
    """FedProx mu of round `number`, and its reason.

    Adjustments apply to the session's mu, not to that of the last round. An adjusted mu is at least `mu_min`; a mu of 0
    (FedAvg) stays 0.

    Args:
        session: its training and scheduler settings.
        number: the round.
        client_losses: training losses of the last round.
    """
    settings, mu = session.scheduler, session.training.proximal_mu
    adaptive = settings.adaptive_mu_enabled and len(client_losses) >= 2
    reason = "as set"
    if adaptive:
        spread = pstdev(client_losses)
        is_far = spread > settings.loss_std_threshold
        mu *= settings.mu_adjust_factor if is_far else 1.0
        comparison = "over" if is_far else "not over"
        reason = f"standard deviation of client losses {spread:.4g}, {comparison} {settings.loss_std_threshold:g}"
    if settings.mu_decay < 1:
        mu *= settings.mu_decay ** (number - 1)
        reason += f", decay {settings.mu_decay:g} per round"
    if mu > 0 and (adaptive or settings.mu_decay < 1):
        mu = max(mu, settings.mu_min)
    return mu, f"mu {mu:.4g} ({reason})"


def _spike_reason(losses: Sequence[float], settings: SchedulerSettings) -> list[str]:
    """The reason why learning rates are not adjusted in this round; empty without a spike."""
    if not (settings.dynamic_training_decay or settings.adaptive_lr_enabled):
        return []
    if not is_spike(losses, settings.spike_threshold):
        return []
    rise = f"evaluation loss rose from {losses[-SPIKE_LOSSES]:.4g} to {losses[-1]:.4g}"
    return [f"{rise}, by more than {settings.spike_threshold:g}: no lr adjustments"]


def _lr_factor(
    session: Session, number: int, history: Sequence[RoundRecord], spike: list[str]
) -> tuple[float, list[str]]:
    """Product of all adjustments up to round `number`, and the reason of the last one."""
    before = history[-1].decision.lr_factor if history and history[-1].decision else 1.0
    if spike or not session.scheduler.dynamic_training_decay:
        return before, []
    is_evaluated = bool(history) and history[-1].evaluation is not None
    change, reason = lr_adjustment(evaluation_losses(history) if is_evaluated else (), number, session.scheduler)
    # The factor itself is bounded, not only the learning rate: a factor far below the minimum would need as many rounds
    # to rise above it again.
    return clamp(before * change, session.scheduler.eta_min / session.training.lr, LR_CEILING), [reason]


def _boost_reasons(losses: Mapping[str, float], boosts: Mapping[str, float], settings: SchedulerSettings) -> list[str]:
    """Why single clients have another learning rate, or why none can have one."""
    multiplier = settings.high_loss_multiplier
    if settings.adaptive_lr_enabled and 0 < len(losses) <= multiplier:
        return [f"no client's lr is raised: of {len(losses)} losses none exceeds {multiplier:g} times their mean"]
    mean = fmean(losses.values()) if losses else 0.0
    return [
        f"{client}: training loss {losses[client]:.4g}, mean of all clients {mean:.4g}, its lr x{boost:g}"
        for client, boost in boosts.items()
    ]


def _bounded_boost(session: Session, lr: float, boost: float) -> float:
    """The boost, limited so that the client's learning rate stays within the bounds of all learning rates."""
    low, high = session.scheduler.eta_min, LR_CEILING * session.training.lr
    return boost if low <= lr * boost <= high else clamp(lr * boost, low, high) / lr

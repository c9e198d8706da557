"""The largest change of a weight in a round: known before anybody trains, so that clients can agree on a grid."""

from math import sqrt

from zk0.rules.lr_schedules import step_lr
from zk0.settings.session import Session


def largest_delta(session: Session, lr: float, steps: int) -> float:
    """Return how far AdamW can move a weight in a round, without its weight decay.

    Args:
        session: its training and scheduler settings.
        lr: learning rate of the round.
        steps: optimizer steps.
    """
    scheduler, betas = session.scheduler, session.training.betas
    return sum(
        step_lr(lr, scheduler.eta_min, scheduler.type, step, steps) * largest_adam_step(step + 1, betas)
        for step in range(steps)
    )


def largest_adam_step(step: int, betas: tuple[float, float]) -> float:
    """Return the largest |m / sqrt(v)| of Adam's bias-corrected moments after so many steps, whatever the gradients.

    With m = sum a_k g_k and v = sum b_k g_k^2 it is sqrt(sum a_k^2 / b_k), by the Cauchy-Schwarz inequality.

    >>> largest_adam_step(1, (0.9, 0.95))
    1.0
    >>> round(largest_adam_step(1000, (0.9, 0.95)), 4)
    1.165
    """
    first, second = betas
    ratio = first**2 / second if second else 0.0
    terms = step if ratio == 1 else (1 - ratio**step) / (1 - ratio)
    own = (1 - first) / (1 - first**step)
    return sqrt(own**2 * (1 - second**step) / (1 - second) * terms)

"""The rules by which the updates of a round are summed in secure aggregation, which go with every client's plan."""

from collections.abc import Sequence

from zk0.records import Member, RoundDecision
from zk0.rules.delta_limit import largest_delta
from zk0.settings.plans import SecureRules
from zk0.settings.session import Session
from zk0.training.batches import count_steps


def secure_rules(session: Session, members: Sequence[Member], decision: RoundDecision) -> SecureRules | None:
    """Return the rules of a round; None without secure aggregation.

    Args:
        session: the settings.
        members: all clients.
        decision: learning rate of the round.
    """
    return rules_of_sum(session, members, decision.lr) if session.federation.secure else None


def rules_of_sum(session: Session, members: Sequence[Member], lr: float) -> SecureRules:
    """Return the rules of a sum.

    Args:
        session: the settings.
        members: all clients; the one with the most frames makes the most optimizer steps.
        lr: learning rate of the round.
    """
    training, aggregation = session.training, session.aggregation
    frames = max(member.train_frames for member in members)
    steps = count_steps(frames, training.batch_size, training.local_steps, training.local_epochs)
    return SecureRules(
        bits=session.federation.secure_bits,
        neighbors=session.federation.secure_neighbors,
        limit=largest_delta(session, lr, steps),
        clip_norm=aggregation.clip_norm,
        equal_weights=aggregation.weighting == "equal" or aggregation.noise_multiplier > 0,
        max_share_factor=aggregation.max_share_factor,
    )

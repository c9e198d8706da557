"""Whether the grid of secure sums is fine enough for a session's clients, and for the norm that they clip to."""

from collections.abc import Sequence

from zk0.errors import SettingsError
from zk0.evaluation.secure_plan import rules_of_sum
from zk0.records import Member
from zk0.rules.participation import sample_size
from zk0.secure.messages import mean_weights
from zk0.settings.federation_settings import MAX_CLIENTS_OF_16_BITS
from zk0.settings.session import Session
from zk0.weights.fixed_point import FixedPointGrid

MAX_ROUNDED_PART = 0.1
"""Largest part of `aggregation.clip_norm` that rounding may take."""


def check_secure_grid(session: Session, members: Sequence[Member], values: int) -> None:
    """Raise if rounding would spoil the sums of a session with secure aggregation.

    Args:
        session: the settings.
        members: all clients.
        values: number of trained weights.

    Raises:
        SettingsError: more clients than words of 16 bits are for, or rounding takes too much of `clip_norm`.
    """
    federation, clip_norm = session.federation, session.aggregation.clip_norm
    if not federation.secure:
        return
    clients = sample_size(len(members), federation.fraction_fit, federation.min_updates)
    if federation.secure_bits == 16 and clients > MAX_CLIENTS_OF_16_BITS:
        raise SettingsError(
            f"federation.secure_bits 16 with {clients} clients in a round, expected at most {MAX_CLIENTS_OF_16_BITS}: "
            "the share of each is rounded to zero where it is small; set federation.secure_bits = 32"
        )
    if clip_norm is None:
        return
    lost = _largest_rounding(session, members, values, clients)
    if lost > MAX_ROUNDED_PART * clip_norm:
        raise SettingsError(
            f"aggregation.clip_norm {clip_norm:g} with federation.secure_bits {federation.secure_bits}: rounding "
            f"{values:,} weights may take {lost:.3g} of it from a client's update, expected at most "
            f"{MAX_ROUNDED_PART:.0%}; set federation.secure_bits = 32, or aggregation.clip_norm to "
            f"{lost / MAX_ROUNDED_PART:.2g} or more"
        )


def _largest_rounding(session: Session, members: Sequence[Member], values: int, clients: int) -> float:
    """Return the largest L2 norm by which rounding changes a client's update, in the round with the coarsest grid."""
    rules = rules_of_sum(session, members, session.training.lr)
    weights = mean_weights([member.train_frames for member in members], rules)
    share = min(weights) / sum(weights) * len(members) / clients
    return FixedPointGrid(rules.bits, rules.limit, clients).rounding_error(values) / share

"""Finds the kind of a policy by LeRobot's type of it."""

from typing import Any

from zk0.policy.plain.plain_kind import PlainKind
from zk0.policy.policy_kind import PolicyKind
from zk0.policy.published_config import SMOLVLA_TYPES
from zk0.policy.smolvla.smolvla_kind import SmolVLAKind

_SMOLVLA, _PLAIN = SmolVLAKind(), PlainKind()


def kind_of(policy: Any) -> PolicyKind:
    """The kind of a LeRobot policy."""
    return kind_of_type(policy.config.type)


def kind_of_type(policy_type: str) -> PolicyKind:
    """The kind of the policies of a type; `PlainKind` for all types that have no kind of their own."""
    return _SMOLVLA if policy_type in SMOLVLA_TYPES else _PLAIN

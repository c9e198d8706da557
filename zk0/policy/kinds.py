"""Finds the kind of a policy by LeRobot's type of it."""

from typing import Any

from zk0.policy.policy_kind import PolicyKind
from zk0.policy.smolvla.smolvla_kind import SMOLVLA_TYPES, SmolVLAKind

_SMOLVLA = SmolVLAKind()


def kind_of(policy: Any) -> PolicyKind:
    """The kind of a LeRobot policy."""
    if policy.config.type in SMOLVLA_TYPES:
        return _SMOLVLA
    raise AssertionError(f"no kind for policies of type {policy.config.type}")

"""Which parts of a SmolVLA policy are trained: the action expert and projections, or what patterns choose of all."""

from collections.abc import Sequence
from typing import Any

from zk0.policy.scope import keep_trained
from zk0.policy.trainable import cast_trainable


def select_trained(policy: Any, patterns: Sequence[str]) -> None:
    """Make the parameters trainable that match a pattern, and no others; without patterns, expert and projections.

    Trained parameters are fp32. If some of the vision-language model are trained, all of it is fp32: its layers compute
    in one type. The configuration names what is frozen, as LeRobot's training reads it.

    Raises:
        PolicyError: a pattern matches no parameter that can be trained.
    """
    both = policy.model.vlm_with_expert
    both.vlm.requires_grad_(False)
    cast_trainable(policy)  # the expert also where only a part of it is trained: its layers compute in one type
    if patterns:
        _unfreeze(policy)
        keep_trained(policy, patterns)
    trained = [name for name, parameter in both.vlm.named_parameters() if parameter.requires_grad]
    if trained:
        both.vlm.float()
    config = policy.config
    config.train_expert_only = both.train_expert_only = not trained
    config.freeze_vision_encoder = both.freeze_vision_encoder = not any(".vision_model." in name for name in trained)


def _unfreeze(policy: Any) -> None:
    """Make everything trainable that LeRobot trains of an unfrozen policy.

    LeRobot leaves out what changes no loss: the language model's head and norm, and its last layer.
    """
    both = policy.model.vlm_with_expert
    both.train_expert_only = both.freeze_vision_encoder = False
    policy.config.train_state_proj = True
    policy.requires_grad_(True)
    both.set_requires_grad()

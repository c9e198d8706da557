"""LoRA on the action expert, by peft: put on for a round, taken off again."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from zk0.adapter import lora_targets
from zk0.errors import PolicyError
from zk0.robot.policy import PEFT_NAME, trained_parameters
from zk0.session import TrainingSettings


@contextmanager
def adapters(policy: Any, training: TrainingSettings, seed: int) -> Iterator[None]:
    """Only low-rank factors beside the action expert's matrices are trained meanwhile; all else is frozen.

    A is drawn from `seed` (Kaiming uniform, as peft does), B starts at zero: the policy's answers do not change. On the
    way out the factors are taken off and what was trained before is trained again; its weights have not moved.

    Raises:
        PolicyError: the policy has no action expert that could be adapted.
    """
    from peft import LoraConfig
    from peft.tuners.lora import LoraModel

    trained = trained_parameters(policy)
    targets = [name.removesuffix(".weight") for name in lora_targets(trained)]
    if not targets:
        raise PolicyError('training.adapter "lora": the policy has no trained matrix in an action expert')
    config = LoraConfig(
        r=training.lora_rank,
        lora_alpha=training.lora_alpha,
        lora_dropout=training.lora_dropout,
        target_modules=targets,
        bias="none",
    )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        tuner = LoraModel(policy, config, PEFT_NAME.strip("."))  # draws on the CPU: the same on every device
    try:
        yield
    finally:
        tuner.unload()
        for parameter in trained.values():
            parameter.requires_grad_(True)

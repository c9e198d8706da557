"""LoRA (arXiv 2106.09685) on the action expert: peft attaches the factors for one round and removes them again."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from zk0.errors import PolicyError
from zk0.policy.trainable import PEFT_ADAPTER_INFIX, trainable_parameters
from zk0.settings.training_settings import LocalTrainingSettings
from zk0.weights.lora_factors import lora_targets


@contextmanager
def lora_attached(policy: Any, training: LocalTrainingSettings, seed: int) -> Iterator[None]:
    """Inside the block only LoRA factors beside the action expert's matrices are trainable; all else is frozen.

    `seed` draws the factor A (Kaiming uniform, peft's default); B starts at zero, so attaching the factors does not
    change the policy's output. On exit the factors are removed without merging, and the parameters that were trainable
    before are trainable again, with unchanged values.

    Raises:
        PolicyError: the policy has no trainable matrix in an action expert.
    """
    from peft import LoraConfig
    from peft.tuners.lora import LoraModel

    trainable = trainable_parameters(policy)
    targets = [name.removesuffix(".weight") for name in lora_targets(trainable)]
    if not targets:
        raise PolicyError('training.scope "lora": the policy has no trainable matrix in an action expert')
    config = LoraConfig(
        r=training.lora_rank,
        lora_alpha=training.lora_alpha,
        lora_dropout=training.lora_dropout,
        target_modules=targets,
        bias="none",
    )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        # peft draws A on the CPU, so A is the same on every device
        tuner = LoraModel(policy, config, PEFT_ADAPTER_INFIX.strip("."))
    try:
        yield
    finally:
        tuner.unload()
        for parameter in trainable.values():
            parameter.requires_grad_(True)

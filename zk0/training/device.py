"""The torch device that training and evaluation run on, and the precision of training there."""

from typing import Literal

import torch

_FIRST_WITH_BF16 = (8, 0)
"""Compute capability from which NVIDIA's GPUs multiply matrices of bf16 (Ampere)."""


def pick_device(device: str) -> str:
    """The device to use: for `auto`, `cuda` if torch finds a GPU and else `cpu`; any other value unchanged."""
    if device != "auto":
        return device
    return "cuda" if torch.cuda.is_available() else "cpu"


def compute_capability(device: str) -> tuple[int, int] | None:
    """The compute capability of a GPU; None for a CPU."""
    return torch.cuda.get_device_capability(device) if torch.device(device).type == "cuda" else None


def uses_bf16(amp: Literal[True, False, "auto"], capability: tuple[int, int] | None) -> bool:
    """Whether training runs under bf16 autocast; with `auto` on every GPU that multiplies matrices of bf16.

    Args:
        amp: `training.amp`.
        capability: of the GPU, from `compute_capability`; None: a CPU.

    >>> uses_bf16("auto", (9, 0)), uses_bf16("auto", (7, 5)), uses_bf16("auto", None), uses_bf16(True, None)
    (True, False, False, True)
    """
    if amp == "auto":
        return capability is not None and capability >= _FIRST_WITH_BF16
    return amp

"""The torch device that training and evaluation run on."""

import torch


def pick_device(device: str) -> str:
    """The device to use: for `auto`, `cuda` if torch finds a GPU and else `cpu`; any other value unchanged."""
    if device != "auto":
        return device
    return "cuda" if torch.cuda.is_available() else "cpu"

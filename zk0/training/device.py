"""Where training runs."""

import torch


def pick_device(wanted: str) -> str:
    """`auto` as cuda where there is one, else cpu."""
    if wanted != "auto":
        return wanted
    return "cuda" if torch.cuda.is_available() else "cpu"

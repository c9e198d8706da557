"""Kernels that give the same bits every time, for those who want them on a GPU as on a CPU."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def deterministic_kernels(wanted: bool) -> Iterator[None]:
    """With `wanted`, torch uses only deterministic kernels meanwhile, and says so by an error where it has none.

    On a CPU kernels are deterministic anyway. On a GPU cuBLAS needs a workspace of its own for it, which torch reads
    from the environment when it first multiplies; `zk0 bench train` measures what it costs.
    """
    if not wanted:
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.backends.cudnn.benchmark = before[1]

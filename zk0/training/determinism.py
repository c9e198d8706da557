"""Deterministic GPU kernels, for `training.deterministic`."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def deterministic_kernels(enabled: bool) -> Iterator[None]:
    """Inside the block torch uses deterministic kernels only, and raises RuntimeError where it has none.

    On a CPU, torch's kernels are deterministic anyway. On a GPU, cuBLAS needs a fixed workspace, which torch reads from
    the environment at its first matrix product. `zk0 bench train` measures what it costs.
    """
    if not enabled:
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

"""The kernels of a training step: deterministic ones where `training.deterministic` asks for them, else fast ones."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def training_kernels(device: str, deterministic: bool) -> Iterator[None]:
    """Inside the block torch uses the kernels that training on this device shall use; on exit, those of before.

    Deterministic: torch raises RuntimeError where it has no deterministic kernel. On a CPU, torch's kernels are
    deterministic anyway. On a GPU, cuBLAS needs a fixed workspace, which torch reads from the environment at its first
    matrix product. `zk0 bench train` measures what it costs.

    Otherwise, on a GPU only: matrix products of float32 in TF32, and cuDNN measures which of its kernels is fastest, as
    `lerobot-train` does.

    Args:
        device: of the policy; a number after a colon is ignored.
        deterministic: `training.deterministic`.
    """
    if not deterministic and torch.device(device).type != "cuda":
        yield
        return
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.backends.cudnn.benchmark,
        torch.backends.cuda.matmul.allow_tf32,
    )
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        _set_kernels(deterministic=True, cudnn_benchmark=False, tf32=before[2])
    else:
        _set_kernels(deterministic=before[0], cudnn_benchmark=True, tf32=True)
    try:
        yield
    finally:
        _set_kernels(*before)


def _set_kernels(deterministic: bool, cudnn_benchmark: bool, tf32: bool) -> None:
    torch.use_deterministic_algorithms(deterministic)
    torch.backends.cudnn.benchmark = cudnn_benchmark
    # also torch.float32_matmul_precision, by which a CPU may choose other kernels: not to be left on
    torch.backends.cuda.matmul.allow_tf32 = tf32

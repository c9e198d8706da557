"""The kernels of training by device and `training.deterministic`; none of it needs a GPU."""

import pytest
import torch

from zk0.training.determinism import training_kernels


def kernel_choice() -> tuple[bool, bool, bool, str]:
    """What torch shall use: deterministic kernels, cuDNN's fastest, TF32, and the precision that CPUs look at."""
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.backends.cudnn.benchmark,
        torch.backends.cuda.matmul.allow_tf32,
        torch.get_float32_matmul_precision(),
    )


@pytest.mark.parametrize(
    ("device", "deterministic", "expected"),
    [
        ("cpu", False, (False, False, False, "highest")),
        ("cpu", True, (True, False, False, "highest")),
        ("cuda", False, (False, True, True, "high")),
        ("cuda:1", False, (False, True, True, "high")),
        ("cuda", True, (True, False, False, "highest")),
    ],
)
def test_kernels_by_device_and_setting(device: str, deterministic: bool, expected: tuple) -> None:
    before = kernel_choice()
    with training_kernels(device, deterministic):
        assert kernel_choice() == expected
    assert kernel_choice() == before == (False, False, False, "highest")

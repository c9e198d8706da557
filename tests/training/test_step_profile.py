"""benchmarks/gpu.sh and the profile of a step: by hand, and of real operations on the CPU."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def step_profile(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from gpu import step_profile

    return step_profile


def test_parts_of_a_step_by_hand(step_profile: Any) -> None:
    """Two steps of 5 ms: kernels in 0..4 and 5..6 ms, a copy in 3..5 ms beside them."""
    work = [
        step_profile.BusyTime("sm90_xmma_gemm_bf16", 0.0, 3000.0),
        step_profile.BusyTime("Memcpy HtoD (Pinned -> Device)", 3000.0, 5000.0),
        step_profile.BusyTime("void at::native::elementwise_kernel", 3000.0, 4000.0),
        step_profile.BusyTime("multi_tensor_apply_kernel<FusedAdamMathFunctor>", 5000.0, 6000.0),
    ]
    assert step_profile.busy_microseconds(work[::-1]) == 6000.0
    expected = {"copies": 1.0, "optimizer": 0.5, "matrix products": 1.5, "other": 0.5, "idle": 2.0}
    assert step_profile.step_parts(work, 2, 0.005) == pytest.approx(expected)
    assert step_profile.step_parts(work, 2, 0.001)["idle"] == 0.0


def test_a_recorded_step_has_its_kinds_of_work(step_profile: Any) -> None:
    layer, data = torch.nn.Linear(64, 64), torch.ones(8, 64)
    optimizer = torch.optim.AdamW(layer.parameters())
    profile = step_profile.StepProfile("cpu")
    for _ in range(step_profile.PROFILED_STEPS + 3):
        profile.tick()
        torch.autograd.backward(layer(data).clone().exp().sum())
        optimizer.step()
    found = dict.fromkeys((*step_profile.KINDS, "other"), 0)
    for one in profile.work:
        assert one.end >= one.start
        found[step_profile.kind_of(one.name)] += 1
    steps = step_profile.PROFILED_STEPS
    assert found["optimizer"] == steps
    assert found["matrix products"] >= 2 * steps
    assert found["copies"] >= steps
    assert found["other"] > 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="measures for minutes where there is a GPU")
def test_without_a_gpu_the_script_says_so_and_ends(tmp_path: Path) -> None:
    script = [str(BENCHMARKS / "gpu.sh"), str(tmp_path / "found")]
    ended = subprocess.run(
        script, capture_output=True, text=True, env={"PYTHON": sys.executable, "PATH": "/usr/bin:/bin"}
    )
    assert ended.returncode == 2
    assert ended.stderr.startswith("gpu.sh: torch finds no GPU here")
    assert list((tmp_path / "found").iterdir()) == []

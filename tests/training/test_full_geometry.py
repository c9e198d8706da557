"""The 450M policy with random weights: cached features against `policy.forward`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from zk0.data.episode_reader import EpisodeReader
from zk0.policy.processors import make_processors
from zk0.policy.smolvla.draws import draw_noise_and_time
from zk0.policy.smolvla.frame_features import FeatureKind
from zk0.policy.trainable import trainable_parameters
from zk0.records import Statistics
from zk0.training.cached_examples import CachedExamples
from zk0.training.decoded_examples import DecodedExamples
from zk0.training.feature_cache import FeatureCache

CAMERAS = ("overhead", "wrist")
TASKS = ("Lift the red cube.",)


@pytest.fixture(scope="module")
def short(record: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return record(tmp_path_factory.mktemp("short") / "set", 3, (4,), tasks=TASKS)


def gradients(policy: Any, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    trained = trainable_parameters(policy)
    return dict(zip(trained, torch.autograd.grad(loss, list(trained.values())), strict=True))


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.double() - expected.double()).norm() / expected.double().norm())


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "vlm in bf16"])
def test_loss_and_every_gradient(
    full: Any, short: Path, tmp_path: Path, dtype: torch.dtype, record_property: Callable[[str, object], None]
) -> None:
    from zk0.data.statistics import measure_statistics

    full.model.vlm_with_expert.vlm.to(dtype)
    assert sum(p.numel() for p in full.parameters()) == 450_046_176
    statistics = measure_statistics(short, (0,))
    pre, _ = make_processors(full, Statistics(state=statistics.state, action=statistics.action))
    draws = draw_noise_and_time(2, full, torch.Generator().manual_seed(1))
    full.train()
    expected = DecodedExamples(short, (0,), full, pre, {}).loss(full, [0, 3], draws)
    expected_gradients = gradients(full, expected)
    bytes_each: dict[FeatureKind, int] = {"embeddings": 2 * 64 * 960, "kv": 16 * 2 * (128 + 7) * 320}
    limits = (1e-6, 1e-6) if dtype == torch.float32 else (1e-4, 1e-3)
    for kind, numbers in bytes_each.items():
        cache = FeatureCache(tmp_path, full, CAMERAS, kind)
        cached = CachedExamples(EpisodeReader(short), (0,), full, pre, cache)
        assert cached._features[0][0].nbytes == numbers * dtype.itemsize
        loss = cached.loss(full, [0, 3], draws)
        found = gradients(full, loss)
        whole = relative(*(torch.cat([g.flatten() for g in each.values()]) for each in (found, expected_gradients)))
        worst = max(relative(found[n], expected_gradients[n]) for n in expected_gradients)
        differences = (relative(loss.detach(), expected.detach()), whole, worst)
        record_property(f"{kind}: relative differences of loss, all gradients, worst tensor", differences)
        print(kind, dtype, differences)  # noqa: T201 -- shown with -s
        assert differences[0] <= limits[0]
        assert whole <= limits[1]

"""Cached features and decoding in every step give the same loss, whatever the dataset's keys and storage."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from zk0.data.episode_reader import EpisodeReader
from zk0.policy.processors import make_processors
from zk0.policy.smolvla.draws import draw_noise_and_time
from zk0.policy.smolvla.frame_features import FeatureKind
from zk0.records import Statistics
from zk0.training.cached_examples import CachedExamples
from zk0.training.decoded_examples import DecodedExamples
from zk0.training.feature_cache import FeatureCache

CONTRACT = {
    "observation.state": "observation.state",
    "action": "action",
    "observation.images.overhead": "observation.images.overhead",
    "observation.images.wrist": "observation.images.wrist",
}
RENAMED = {
    "my.state": "observation.state",
    "my.action": "action",
    "observation.images.top": "observation.images.overhead",
    "observation.images.hand": "observation.images.wrist",
}


def write(target: Path, keys: dict[str, str], dtype: str) -> Path:
    """Write three episodes with LeRobot; `keys` names the features (stored -> contract)."""
    from lerobot.datasets import LeRobotDataset

    stored = {new: old for old, new in keys.items()}
    numbers = {"dtype": "float32", "shape": (6,), "names": [f"joint_{i}.pos" for i in range(6)]}
    pictures = {"dtype": dtype, "shape": (64, 64, 3), "names": ["height", "width", "channels"]}
    features = {stored[k]: dict(pictures if "images" in k else numbers) for k in CONTRACT}
    data = LeRobotDataset.create(
        "local/set", 10, features, root=target, use_videos=dtype == "video", video_backend="pyav"
    )
    rng = np.random.default_rng(6)
    for _ in range(3):
        for t in range(12):
            frame: dict[str, Any] = {"task": "Lift." if t % 2 else "Put it there, slowly."}
            for key in ("observation.state", "action"):
                frame[stored[key]] = (40 * rng.standard_normal(6)).astype(np.float32)
            for key in ("observation.images.overhead", "observation.images.wrist"):
                picture = np.full((64, 64, 3), rng.integers(0, 200), dtype=np.uint8)
                picture[t : t + 20, 5:30] = 250
                frame[stored[key]] = picture
            data.add_frame(frame)
        data.save_episode(parallel_encoding=False)
    data.finalize()
    return target


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, dict[str, str]]]:
    folder = tmp_path_factory.mktemp("sets")
    return {
        "videos": (write(folder / "videos", CONTRACT, "video"), {}),
        "videos, renamed": (write(folder / "renamed", RENAMED, "video"), RENAMED),
        "images": (write(folder / "images", CONTRACT, "image"), {}),
        "images, renamed": (write(folder / "images-renamed", RENAMED, "image"), RENAMED),
    }


def both(
    policy: Any, statistics: Statistics, root: Path, rename: dict, folder: Path, kind: FeatureKind = "embeddings"
) -> tuple[CachedExamples, DecodedExamples]:
    pre, _ = make_processors(policy, statistics)
    cache = FeatureCache(folder, policy, ("overhead", "wrist"), kind)
    cached = CachedExamples(EpisodeReader(root, rename), (0, 2), policy, pre, cache)
    return cached, DecodedExamples(root, (0, 2), policy, pre, rename)


def worst_gradient(policy: Any, found: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest relative difference of one trained tensor's gradient."""
    trained = [p for p in policy.parameters() if p.requires_grad]
    pairs = zip(torch.autograd.grad(found, trained), torch.autograd.grad(expected, trained), strict=True)
    return max(float((f - w).norm() / w.norm()) for f, w in pairs)


@pytest.mark.parametrize("kind", ["embeddings", "kv"])
@pytest.mark.parametrize("name", ["videos", "videos, renamed", "images", "images, renamed"])
def test_both_give_the_same_loss(
    name: str, kind: FeatureKind, sets: dict, policy: Any, statistics: Statistics, tmp_path: Path
) -> None:
    root, rename = sets[name]
    cached, decoded = both(policy, statistics, root, rename, tmp_path, kind)
    assert cached.frames == decoded.frames == 24
    assert cached.action_counts.tolist() == [*[10] * 3, *range(9, 0, -1)] * 2
    assert decoded.action_counts.tolist() == cached.action_counts.tolist()
    generator = torch.Generator().manual_seed(1)
    for indices in ([0, 13, 5, 23, 10], [11], list(range(24))):
        draws = draw_noise_and_time(len(indices), policy, generator)
        found, expected = (e.loss(policy, indices, draws) for e in (cached, decoded))
        assert found.item() == pytest.approx(expected.item(), rel=1e-6)
        assert worst_gradient(policy, found, expected) <= 2e-6


def test_features_of_a_bf16_language_model_agree_to_its_rounding(
    sets: dict, policy: Any, statistics: Statistics, tmp_path: Path
) -> None:
    policy.model.vlm_with_expert.vlm.to(torch.bfloat16)
    losses = {}
    for kind in ("embeddings", "kv"):
        cached, decoded = both(policy, statistics, *sets["videos"], tmp_path / kind, kind)
        draws = draw_noise_and_time(24, policy, torch.Generator().manual_seed(1))
        found, expected = (e.loss(policy, range(24), draws) for e in (cached, decoded))
        assert found.item() == pytest.approx(expected.item(), rel=2e-3)
        assert worst_gradient(policy, found, expected) <= 2e-2
        losses[kind] = found.item()
    assert losses["kv"] == pytest.approx(losses["embeddings"], rel=1e-3)


def test_names_and_storage_do_not_change_the_numbers(
    sets: dict, policy: Any, statistics: Statistics, tmp_path: Path
) -> None:
    losses = {}
    for name, (root, rename) in sets.items():
        cached, _ = both(policy, statistics, root, rename, tmp_path)
        draws = draw_noise_and_time(24, policy, torch.Generator().manual_seed(1))
        losses[name] = cached.loss(policy, range(24), draws).item()
    assert losses["videos"] == losses["videos, renamed"]
    assert losses["images"] == losses["images, renamed"]
    assert losses["images"] == pytest.approx(losses["videos"], rel=0.05)


def test_episodes_in_one_image_file_are_kept_apart(
    sets: dict, policy: Any, statistics: Statistics, tmp_path: Path
) -> None:
    cached, _ = both(policy, statistics, *sets["images"], tmp_path)
    assert len(list(tmp_path.glob("*.npy"))) == 2
    assert not torch.equal(cached.prefix_of_frames([0]).stack(), cached.prefix_of_frames([12]).stack())


def test_padded_steps_do_not_count(sets: dict, policy: Any, statistics: Statistics, tmp_path: Path) -> None:
    """The last frame of an episode has one action that is not padding: only its error is in the loss."""
    cached, _ = both(policy, statistics, *sets["videos"], tmp_path)
    draws = draw_noise_and_time(1, policy, torch.Generator().manual_seed(1))
    losses = cached.elementwise_losses(policy, [11], draws)
    assert losses.shape == (1, 10, 6)
    assert (losses[0, 1:] == 0).all()
    assert cached.loss(policy, [11], draws).item() == pytest.approx(losses[0, 0].mean().item(), rel=1e-6)
    cached.actions[11, 1:] += 5
    moved = cached.loss(policy, [11], draws)
    assert moved.item() != 0


def test_the_episode_of_each_frame(sets: dict, policy: Any, statistics: Statistics, tmp_path: Path) -> None:
    cached, _ = both(policy, statistics, *sets["videos"], tmp_path)
    assert cached.episode_of_frame.tolist() == [0] * 12 + [2] * 12
    assert cached.frame_in_episode.tolist() == [*range(12), *range(12)]

"""Kept features: equal to the bit, computed once, and never taken for another frame's."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from zk0.errors import PolicyError
from zk0.robot.dataset import EpisodeReader
from zk0.training.features import FeatureCache

CAMERAS = ("overhead", "wrist")


def build(
    folder: Path, policy: Any, root: Path, episodes: tuple[int, ...] = (0, 1), cameras: tuple[str, ...] = CAMERAS
) -> tuple[list[np.ndarray], list[int]]:
    """Features, and the frames of each episode that had to be computed."""
    reader, computed = EpisodeReader(root), []
    cache = FeatureCache(folder, policy, cameras)
    return cache.episodes(reader, reader.read(episodes), computed.append), computed


def test_a_hit_is_the_miss_to_the_bit_and_nothing_is_computed_twice(
    policy: Any, recordings: dict[str, Path], tmp_path: Path
) -> None:
    from zk0.robot.prefix import embed_frames

    first, computed = build(tmp_path, policy, recordings["a"])
    assert computed == [12, 15]
    assert [f.shape for f in first] == [(12, 2, 9, 64), (15, 2, 9, 64)]
    again, computed = build(tmp_path, policy, recordings["a"], (1, 0, 2))
    assert computed == [13]
    assert (again[1] == first[0]).all()
    assert (again[0] == first[1]).all()
    reader = EpisodeReader(recordings["a"])
    (episode,) = reader.read([0])
    images = {f"observation.images.{c}": torch.from_numpy(reader.frames(episode, c)).float() / 255 for c in CAMERAS}
    assert (embed_frames(policy, images).numpy() == first[0]).all()


def test_kept_features_cannot_be_changed_by_a_reader(policy: Any, recordings: dict[str, Path], tmp_path: Path) -> None:
    (features, _), _ = build(tmp_path, policy, recordings["a"])
    with pytest.raises(ValueError, match="read-only"):
        features[0] = 0


def cut(file: Path) -> None:
    os.truncate(file, file.stat().st_size - 4000)


def empty(file: Path) -> None:
    os.truncate(file, 0)


def text(file: Path) -> None:
    file.write_text("not an array")


def fewer_frames(file: Path) -> None:
    np.save(file, np.load(file)[:-1])


def fewer_cameras(file: Path) -> None:
    np.save(file, np.load(file)[:, :1])


def other_dtype(file: Path) -> None:
    np.save(file, np.load(file).astype(np.float16))


def objects(file: Path) -> None:
    np.save(file, np.array([{"a": 1}], dtype=object), allow_pickle=True)


@pytest.mark.parametrize("damage", [cut, empty, text, fewer_frames, fewer_cameras, other_dtype, objects])
def test_a_broken_or_foreign_file_is_computed_again(
    damage: Callable[[Path], None], policy: Any, recordings: dict[str, Path], tmp_path: Path
) -> None:
    (first,), _ = build(tmp_path, policy, recordings["a"], (0,))
    wanted = first.copy()
    (file,) = tmp_path.glob("*.npy")
    damage(file)
    (again,), computed = build(tmp_path, policy, recordings["a"], (0,))
    assert computed == [12]
    assert (again == wanted).all()
    assert list(tmp_path.iterdir()) == [file]


class TestKey:
    def names(self, folder: Path) -> set[str]:
        return {file.name for file in folder.iterdir()}

    def test_other_videos(self, record: Callable[..., Path], policy: Any, tmp_path: Path) -> None:
        """Equal numbers and equal file names, other pictures."""
        for name, seed in (("one", 3), ("two", 4)):
            root = record(tmp_path / name, seed, (12,))
            assert build(tmp_path / "features", policy, root, (0,))[1] == [12]
        assert len(self.names(tmp_path / "features")) == 2

    def test_a_copy_of_the_data_set_is_the_same(self, policy: Any, recordings: dict[str, Path], tmp_path: Path) -> None:
        import shutil

        shutil.copytree(recordings["a"], tmp_path / "copy")
        build(tmp_path / "features", policy, recordings["a"])
        assert build(tmp_path / "features", policy, tmp_path / "copy")[1] == []

    def test_episodes_in_one_video_file(self, record: Callable[..., Path], policy: Any, tmp_path: Path) -> None:
        root = record(tmp_path / "set", 5, (12, 12, 12))
        found, computed = build(tmp_path / "features", policy, root, (0, 1, 2))
        assert computed == [12, 12, 12]
        assert not (found[0] == found[1]).all()

    def test_other_frozen_weights(self, policy: Any, recordings: dict[str, Path], tmp_path: Path) -> None:
        build(tmp_path, policy, recordings["a"])
        with torch.no_grad():
            next(policy.model.vlm_with_expert.vlm.parameters()).view(-1)[0].add_(1e-2)
        assert build(tmp_path, policy, recordings["a"])[1] == [12, 15]

    def test_other_trained_weights_are_the_same(self, policy: Any, recordings: dict[str, Path], tmp_path: Path) -> None:
        build(tmp_path, policy, recordings["a"])
        with torch.no_grad():
            policy.model.state_proj.weight.add_(1e-2)
        assert build(tmp_path, policy, recordings["a"])[1] == []

    def test_cameras_and_their_order(self, policy: Any, recordings: dict[str, Path], tmp_path: Path) -> None:
        build(tmp_path, policy, recordings["a"], (0,))
        assert build(tmp_path, policy, recordings["a"], (0,), ("wrist", "overhead"))[1] == [12]
        assert len(self.names(tmp_path)) == 2

    def test_size_of_the_images(self, policy: Any, recordings: dict[str, Path], tmp_path: Path) -> None:
        build(tmp_path, policy, recordings["a"], (0,))
        before = self.names(tmp_path)
        policy.config.resize_imgs_with_padding = (96, 64)
        reader = EpisodeReader(recordings["a"])
        (episode,) = reader.read([0])
        assert f"{FeatureCache(tmp_path, policy, CAMERAS)._key(reader, episode)}.npy" not in before


def test_bf16_features_come_back_as_bf16(policy: Any, recordings: dict[str, Path], tmp_path: Path) -> None:
    policy.model.vlm_with_expert.vlm.to(torch.bfloat16)
    (features,), _ = build(tmp_path, policy, recordings["a"], (0,))
    assert features.dtype == np.int16
    values = FeatureCache(tmp_path, policy, CAMERAS).tensor(np.array(features[:3]))
    assert values.dtype == torch.bfloat16
    assert 0.01 < values.float().abs().mean() < 10
    assert build(tmp_path, policy, recordings["a"], (0,))[1] == []


def test_a_policy_whose_prefix_changes_is_refused(policy: Any, tmp_path: Path) -> None:
    policy.config.prefix_length = 200
    with pytest.raises(PolicyError, match=r'training.features = "off"'):
        FeatureCache(tmp_path, policy, CAMERAS)

"""The feature cache: features equal to the bit, computed once, and never confused with another frame's."""

import itertools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from full_disk import files_limited_to

from zk0.data.episode_reader import EpisodeReader
from zk0.errors import DatasetError, PolicyError, SettingsError
from zk0.policy.smolvla.frame_features import FeatureKind, TokenizedTasks
from zk0.training.feature_cache import FeatureCache
from zk0.training.staging import copy_plan

CAMERAS = ("overhead", "wrist")


KINDS = ("embeddings", "kv")
GB = 10**9


def tokenized_tasks(reader: EpisodeReader, policy: Any, episodes: tuple[int, ...]) -> list[TokenizedTasks]:
    """The tokenized tasks of each episode, cut as CachedExamples cuts them."""
    from zk0.policy.processors import make_processors
    from zk0.records import Moments, Statistics

    moments = Moments(count=9, mean=(0.0,) * 6, std=(1.0,) * 6, min=(-9.0,) * 6, max=(9.0,) * 6)
    pre, _ = make_processors(policy, Statistics(state=moments, action=moments))
    found = []
    for episode in reader.read(episodes):
        given = {"observation.state": torch.from_numpy(episode.states), "task": list(episode.tasks)}
        batch = pre(given)
        tokens, mask = batch["observation.language.tokens"], batch["observation.language.attention_mask"]
        found.append(TokenizedTasks.from_batch(tokens, mask)[:])
    return found


def build(
    folder: Path,
    policy: Any,
    root: Path,
    episodes: tuple[int, ...] = (0, 1),
    cameras: tuple[str, ...] = CAMERAS,
    kind: FeatureKind = "embeddings",
    limit: int = GB,
) -> tuple[list[np.ndarray], list[int]]:
    """Features, and the number of computed frames of each episode that was not cached."""
    reader, progress = EpisodeReader(root), []
    cache = FeatureCache(folder, policy, cameras, kind, limit)
    tasks = tokenized_tasks(reader, policy, episodes)
    found = cache.episode_features(
        reader, reader.read(episodes), tasks, lambda done, total: progress.append((done, total))
    )
    assert not progress or progress[-1][0] == progress[-1][1]
    return found, [b - a for a, b in itertools.pairwise([0, *(done for done, _ in progress)])]


def test_cached_features_equal_computed_ones_and_are_computed_once(
    policy: Any, recordings: dict[str, Path], tmp_path: Path
) -> None:
    from zk0.policy.smolvla.prefix import embed_frames

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


def test_cached_features_are_read_only(policy: Any, recordings: dict[str, Path], tmp_path: Path) -> None:
    (features, _), _ = build(tmp_path, policy, recordings["a"])
    with pytest.raises(ValueError, match="read-only"):
        features[0] = 0


def truncate(file: Path) -> None:
    os.truncate(file, file.stat().st_size - 4000)


def empty(file: Path) -> None:
    os.truncate(file, 0)


def text(file: Path) -> None:
    file.write_text("not an array")


def longer(file: Path) -> None:
    file.write_bytes(file.read_bytes() + b"0")


def flip_a_bit(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def flip_a_bit_of_the_digest(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-1] ^= 128
    file.write_bytes(data)


def without_digest(file: Path) -> None:
    np.save(file, np.load(file))


def other_dtype(file: Path) -> None:
    np.save(file, np.load(file).astype(np.float16))


DAMAGES = [truncate, empty, text, longer, flip_a_bit, flip_a_bit_of_the_digest, without_digest, other_dtype]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_computed_again(
    damage: Callable[[Path], None], kind: FeatureKind, policy: Any, recordings: dict[str, Path], tmp_path: Path
) -> None:
    (first,), _ = build(tmp_path, policy, recordings["a"], (0,), kind=kind)
    expected = first.copy()
    (file,) = tmp_path.glob("*.npy")
    del first  # a mapped file must not be truncated
    damage(file)
    (again,), computed = build(tmp_path, policy, recordings["a"], (0,), kind=kind)
    assert computed == [12]
    assert (again == expected).all()
    assert [f for f in tmp_path.iterdir() if f.name != ".lock"] == [file]


class TestKey:
    def names(self, folder: Path) -> set[str]:
        return {file.name for file in folder.glob("*.npy")}

    def test_other_videos(self, record: Callable[..., Path], policy: Any, tmp_path: Path) -> None:
        """The same states and file names, other images."""
        for name, seed in (("one", 3), ("two", 4)):
            root = record(tmp_path / name, seed, (12,))
            assert build(tmp_path / "features", policy, root, (0,))[1] == [12]
        assert len(self.names(tmp_path / "features")) == 2

    def test_a_copy_of_the_dataset_is_the_same(self, policy: Any, recordings: dict[str, Path], tmp_path: Path) -> None:
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
        (tasks,) = tokenized_tasks(reader, policy, (0,))
        assert f"{FeatureCache(tmp_path, policy, CAMERAS)._file_name(reader, episode, tasks, 1)}.npy" not in before

    def test_kinds_do_not_mix(self, policy: Any, recordings: dict[str, Path], tmp_path: Path) -> None:
        for kind in KINDS:
            assert build(tmp_path, policy, recordings["a"], kind=kind)[1] == [12, 15]
            assert build(tmp_path, policy, recordings["a"], kind=kind)[1] == []
        assert len(self.names(tmp_path)) == 4

    def test_the_task_decides_keys_and_values_only(
        self, record: Callable[..., Path], policy: Any, tmp_path: Path
    ) -> None:
        """The same images with another task."""
        roots = [record(tmp_path / text, 3, (12,), tasks=(text,)) for text in ("Lift.", "Push the cube away.")]
        for kind, computed in (("embeddings", []), ("kv", [12])):
            assert build(tmp_path / kind, policy, roots[0], (0,), kind=kind)[1] == [12]
            assert build(tmp_path / kind, policy, roots[1], (0,), kind=kind)[1] == computed


class TestLimit:
    def test_the_geometry_decides_the_bytes_of_a_frame(
        self, policy: Any, recordings: dict[str, Path], tmp_path: Path
    ) -> None:
        """4 layers, keys and values, 2 x 9 image tokens and those of the task, 2 heads of dimension 16, fp32."""
        (embeddings,), _ = build(tmp_path, policy, recordings["a"], (0,))
        assert embeddings[0].nbytes == 2 * 9 * 64 * 4
        (kv,), _ = build(tmp_path, policy, recordings["a"], (0,), kind="kv")
        reader = EpisodeReader(recordings["a"])
        (tasks,) = tokenized_tasks(reader, policy, (0,))
        assert kv[0].nbytes == 4 * 2 * (2 * 9 + tasks.tokens.shape[1]) * 2 * 16 * 4
        assert tasks.tokens.shape[1] == len(reader.read((0,))[0].tasks[0]) + 1  # one token per byte, and a newline

    @pytest.mark.parametrize("kind", KINDS)
    def test_features_over_the_limit_are_rejected_before_they_are_computed(
        self, kind: FeatureKind, policy: Any, recordings: dict[str, Path], tmp_path: Path
    ) -> None:
        found, _ = build(tmp_path / "first", policy, recordings["a"], kind=kind)
        frame, needed = found[0][0].nbytes, sum(f.stat().st_size for f in (tmp_path / "first").glob("*.npy"))
        assert build(tmp_path / "exact", policy, recordings["a"], kind=kind, limit=needed)[1] == [12, 15]
        message = rf"{kind} needs [\d,]+ bytes a frame, {needed:,} for 27 frames in 2 episodes; .*allows {needed - 1:,}"
        with pytest.raises(SettingsError, match=message) as rejected:
            build(tmp_path / "less", policy, recordings["a"], kind=kind, limit=needed - 1)
        assert kind == "kv" or f"needs {frame:,} bytes" in str(rejected.value)
        assert not (tmp_path / "less").exists()

    def test_the_least_recently_used_file_is_removed_first(
        self, policy: Any, recordings: dict[str, Path], tmp_path: Path
    ) -> None:
        """The limit holds two of three episodes (12, 15 and 13 frames)."""
        limit = 29 * 4608 + 1000
        for episode in (0, 1, 0):
            build(tmp_path, policy, recordings["a"], (episode,), limit=limit)
        assert build(tmp_path, policy, recordings["a"], (2,), limit=limit)[1] == [13]
        assert sum(f.stat().st_size for f in tmp_path.glob("*.npy")) <= limit
        assert build(tmp_path, policy, recordings["a"], (0,), limit=limit)[1] == []
        assert build(tmp_path, policy, recordings["a"], (1,), limit=limit)[1] == [15]

    def test_files_in_use_are_never_removed(self, policy: Any, recordings: dict[str, Path], tmp_path: Path) -> None:
        limit = 20 * 4608
        used, _ = build(tmp_path, policy, recordings["a"], (0,), limit=limit)
        with pytest.raises(SettingsError, match=r"bytes of features are in use.*feature_cache_gb allows"):
            build(tmp_path, policy, recordings["a"], (1,), limit=limit)
        assert len(list(tmp_path.glob("*.npy"))) == 1
        del used
        assert build(tmp_path, policy, recordings["a"], (1,), limit=limit)[1] == [15]
        assert len(list(tmp_path.glob("*.npy"))) == 1

    def test_temporary_files_of_killed_processes_are_removed(
        self, policy: Any, recordings: dict[str, Path], tmp_path: Path
    ) -> None:
        (tmp_path / ".abc.npy.0123abcd.tmp").write_bytes(bytes(50_000))
        build(tmp_path, policy, recordings["a"], (0,), limit=60_000)
        assert not list(tmp_path.glob(".*.tmp"))

    def test_a_full_disk_gives_a_clear_error(
        self, policy: Any, recordings: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with (
            files_limited_to(20_000),
            pytest.raises(SettingsError, match=r"no room on the disk for 5\d,\d+ bytes of features"),
        ):
            build(tmp_path, policy, recordings["a"], (0,))
        assert not [f for f in tmp_path.iterdir() if f.name != ".lock"]

    def test_too_many_open_files_give_a_clear_error(
        self, policy: Any, recordings: dict[str, Path], tmp_path: Path
    ) -> None:
        import resource

        from zk0.training.array_cache import ArrayCache

        cache = ArrayCache(tmp_path, GB)
        cache.write("one", (3,), np.float32, [np.arange(3, dtype=np.float32)])
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (200, hard))
        try:
            with pytest.raises(SettingsError, match=r"too many open files.*ulimit -n"):
                _ = [cache.open("one", (3,), np.float32) for _ in range(201)]
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert cache.open("one", (3,), np.float32).tolist() == [0, 1, 2]

    def test_an_episode_that_cannot_be_decoded_leaves_no_file(
        self, record: Callable[..., Path], policy: Any, tmp_path: Path
    ) -> None:
        root = record(tmp_path / "set", 5, (12,))
        video = next((root / "videos").rglob("*.mp4"))
        os.truncate(video, video.stat().st_size // 3)
        with pytest.raises(DatasetError, match="cannot be decoded"):
            build(tmp_path / "features", policy, root, (0,))
        assert not [f for f in (tmp_path / "features").iterdir() if f.name != ".lock"]


def test_bf16_features_come_back_as_bf16(policy: Any, recordings: dict[str, Path], tmp_path: Path) -> None:
    policy.model.vlm_with_expert.vlm.to(torch.bfloat16)
    (features,), _ = build(tmp_path, policy, recordings["a"], (0,))
    assert features.dtype == np.int16
    no_task = TokenizedTasks(torch.zeros(3, 1), torch.ones(3, 1), np.ones(3, dtype=np.int64))
    values = FeatureCache(tmp_path, policy, CAMERAS).stack_features(list(features[:3]), no_task, copy_plan("cpu").empty)
    assert values.dtype == torch.bfloat16
    assert 0.01 < values.float().abs().mean() < 10
    assert build(tmp_path, policy, recordings["a"], (0,))[1] == []


def test_a_policy_with_another_prefix_is_rejected(policy: Any, tmp_path: Path) -> None:
    policy.config.prefix_length = 200
    with pytest.raises(PolicyError, match=r'training.features = "off"'):
        FeatureCache(tmp_path, policy, CAMERAS)

"""Locating, reading and writing datasets, compared with LeRobot's own reader."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.dataset as parquet
import pyarrow.parquet as pq
import pytest

from zk0.errors import DatasetError


def rows_of(root: Path, episode: int) -> dict[str, list]:
    table = parquet.dataset(sorted((root / "data").glob("*/*.parquet"))).to_table().sort_by("index")
    return table.filter(parquet.field("episode_index") == episode).to_pydict()


class TestLocate:
    def test_a_local_folder_is_returned_as_it_is(self, recordings: dict[str, Path], tmp_path: Path) -> None:
        from zk0.data.locate import locate

        assert locate(f"local:{recordings['a']}", tmp_path) == recordings["a"]

    @pytest.mark.parametrize("uri", ["local:{tmp}/nothing", "local:{tmp}"])
    def test_a_folder_without_a_dataset(self, uri: str, tmp_path: Path) -> None:
        from zk0.data.locate import locate

        with pytest.raises(DatasetError, match=r"no LeRobot dataset at .*info.json"):
            locate(uri.format(tmp=tmp_path), tmp_path)

    @pytest.mark.parametrize("uri", ["just-a-name", "ftp:user/name", "a/b/c", "hf:name"])
    def test_an_invalid_dataset_name(self, uri: str, tmp_path: Path) -> None:
        from zk0.data.locate import locate

        with pytest.raises(DatasetError, match=rf"{uri}: not a dataset; expected hf:user/name"):
            locate(uri, tmp_path)

    @pytest.mark.parametrize("uri", ["hf:lab/not-there", "lab/not-there", "hf:../name", "us er/na me"])
    def test_a_dataset_that_the_hub_does_not_have(self, uri: str, tmp_path: Path) -> None:
        from zk0.data.locate import locate

        with pytest.raises(DatasetError, match=r"cannot be fetched from the Hub .*local:/path") as found:
            locate(uri, tmp_path)
        is_valid_name = "lab" in uri
        assert ("run with HF_HUB_OFFLINE=0" in str(found.value)) == is_valid_name


class TestRead:
    def test_values_are_those_of_the_files_in_the_requested_order(self, recordings: dict[str, Path]) -> None:
        from zk0.data.episode_reader import EpisodeReader

        reader = EpisodeReader(recordings["a"])
        assert reader.episodes == (0, 1, 2)
        assert reader.fps == 10
        second, first = reader.read([2, 0])
        for episode, index, length in ((second, 2, 13), (first, 0, 12)):
            rows = rows_of(recordings["a"], index)
            assert episode.index == index
            assert episode.states.tolist() == rows["observation.state"]
            assert episode.actions.tolist() == rows["action"]
            assert episode.timestamps.tolist() == pytest.approx([t / 10 for t in range(length)])
            assert len(set(episode.tasks)) == 1
            assert episode.tasks[0] in ("Lift the red cube.", "Push it.")

    def test_tasks_follow_their_index(self, record: Callable[..., Path], tmp_path: Path) -> None:
        from lerobot.datasets import LeRobotDataset

        from zk0.data.episode_reader import EpisodeReader

        root = record(tmp_path / "set", 8, (4,) * 6, ("wrist",))
        data = LeRobotDataset("local/set", root=root, video_backend="pyav")
        wanted = [data[4 * episode]["task"] for episode in range(6)]
        assert [e.tasks[0] for e in EpisodeReader(root).read(range(6))] == wanted
        assert len(set(wanted)) == 2

    def test_a_missing_episode(self, recordings: dict[str, Path]) -> None:
        from zk0.data.episode_reader import EpisodeReader

        with pytest.raises(DatasetError, match="no rows of episode 7"):
            EpisodeReader(recordings["a"]).read([0, 7])

    def test_repeated_frames_are_read_as_they_are_stored(self, recordings: dict[str, Path], tmp_path: Path) -> None:
        from zk0.data.episode_reader import EpisodeReader

        root = Path(shutil.copytree(recordings["a"], tmp_path / "doubled"))
        (once,) = EpisodeReader(root).read([1])
        (file,) = (root / "data").glob("*/*.parquet")
        shutil.copy(file, file.with_name("file-001.parquet"))
        (twice,) = EpisodeReader(root).read([1])
        assert twice.states.tolist() == np.repeat(once.states, 2, axis=0).tolist()
        assert twice.timestamps.tolist() == np.repeat(once.timestamps, 2).tolist()

    def test_a_missing_column_or_an_unreadable_file_is_named(self, recordings: dict[str, Path], tmp_path: Path) -> None:
        from zk0.data.episode_reader import EpisodeReader

        root = Path(shutil.copytree(recordings["a"], tmp_path / "broken"))
        (file,) = (root / "data").glob("*/*.parquet")
        pq.write_table(pq.read_table(file).drop_columns(["timestamp"]), file)
        with pytest.raises(DatasetError, match="episode 1 has no timestamp or no task_index"):
            EpisodeReader(root).read([1])
        file.write_bytes(b"no parquet")
        with pytest.raises(DatasetError, match=r"\.parquet: found a file that is not readable parquet"):
            EpisodeReader(root).read([1])

    def test_frames_are_those_that_lerobot_decodes(self, recordings: dict[str, Path]) -> None:
        from lerobot.datasets import LeRobotDataset

        from zk0.data.episode_reader import EpisodeReader

        reader, data = (
            EpisodeReader(recordings["a"]),
            LeRobotDataset("local/a", root=recordings["a"], video_backend="pyav"),
        )
        (episode,) = reader.read([1])
        frames = reader.frames(episode, "wrist")
        assert frames.shape == (15, 3, 64, 64)
        assert frames.dtype == np.uint8
        for t in (0, 7, 14):
            assert (frames[t] / np.float32(255) == data[12 + t]["observation.images.wrist"].numpy()).all()
        assert not (frames[0] == frames[7]).all()

    def test_a_missing_camera(self, recordings: dict[str, Path]) -> None:
        from zk0.data.episode_reader import EpisodeReader

        reader = EpisodeReader(recordings["a"])
        with pytest.raises(DatasetError, match=r"no camera observation.images.top; it has .*wrist"):
            reader.frames(reader.read([0])[0], "top")

    def test_a_renamed_camera(self, recordings: dict[str, Path]) -> None:
        from zk0.data.episode_reader import EpisodeReader

        rename = {
            "observation.images.wrist": "observation.images.overhead",
            "observation.images.overhead": "observation.images.wrist",
        }
        plain, renamed = EpisodeReader(recordings["a"]), EpisodeReader(recordings["a"], rename)
        (episode,) = plain.read([0])
        assert (renamed.frames(episode, "overhead") == plain.frames(episode, "wrist")).all()
        assert renamed.frame_location(episode, "overhead") == plain.frame_location(episode, "wrist")

    def test_a_broken_video_is_named(self, record: Callable[..., Path], tmp_path: Path) -> None:
        from zk0.data.episode_reader import EpisodeReader

        root = record(tmp_path / "set", 9, (6,), ("wrist",))
        video = root / "videos/observation.images.wrist/chunk-000/file-000.mp4"
        os.truncate(video, video.stat().st_size // 2)
        reader = EpisodeReader(root)
        with pytest.raises(DatasetError, match=r"file-000.mp4: episode 0, frames 0 to 5 cannot be decoded"):
            reader.frames(reader.read([0])[0], "wrist")


def test_chunks_and_padding_are_those_of_lerobot(recordings: dict[str, Path]) -> None:
    from zk0.data.episode_reader import EpisodeReader, action_chunks, open_lerobot_dataset

    chunks, padding = action_chunks(EpisodeReader(recordings["a"]).read([0, 2]), 10)
    data = open_lerobot_dataset(recordings["a"], [0, 2], {"action": range(10)})
    assert len(data) == len(chunks) == 25
    for i in (0, 2, 3, 11, 12, 24):
        item = data[i]
        assert (item["action"].numpy() == chunks[i]).all()
        assert (item["action_is_pad"].numpy() == padding[i]).all()
    assert padding.sum() == 2 * sum(range(1, 10))


class TestWrite:
    @pytest.mark.skipif(not hasattr(os, "sched_getscheduler"), reason="this platform has no scheduler interface")
    def test_the_thread_priority_is_restored_after_encoding(self, record: Callable[..., Path], tmp_path: Path) -> None:
        before = os.sched_getscheduler(0), os.sched_getparam(0)
        record(tmp_path / "set", 1, (3,))
        assert (os.sched_getscheduler(0), os.sched_getparam(0)) == before

    def test_the_colors_of_small_objects_are_kept(self, tmp_path: Path) -> None:
        """Squares of 7 pixels in pure colors: half the color resolution would blur a third of their pixels."""
        from zk0.data.dataset_writer import RecordedFrame, write_dataset
        from zk0.data.episode_reader import EpisodeReader
        from zk0.settings.dataset_settings import SO101_JOINTS

        frames = []
        for t in range(4):
            image = np.full((96, 96, 3), 120, np.uint8)
            for number, color in enumerate([(255, 0, 0), (0, 0, 255), (255, 255, 0), (128, 0, 128), (0, 255, 0)]):
                image[9 + 15 * number : 16 + 15 * number, 21 + 3 * t : 28 + 3 * t] = color
            frames.append(RecordedFrame(np.zeros(6, np.float32), np.zeros(6, np.float32), {"overhead": image}, "x"))
        write_dataset(tmp_path / "set", [frames], fps=10, joints=SO101_JOINTS, robot_type="so101_follower")
        reader = EpisodeReader(tmp_path / "set")
        decoded = reader.frames(reader.read([0])[0], "overhead").transpose(0, 2, 3, 1)
        stored = np.stack([frame.images["overhead"] for frame in frames])
        assert decoded.shape == stored.shape
        difference = np.abs(decoded.astype(int) - stored)
        assert difference.mean() < 1
        assert (difference.max(-1) > 16).mean() < 0.003

    def test_nothing_is_overwritten(self, record: Callable[..., Path], recordings: dict[str, Path]) -> None:
        with pytest.raises(DatasetError, match="exists already"):
            record(recordings["a"], 1)

    def test_a_failed_recording_leaves_no_file(self, tmp_path: Path) -> None:
        from zk0.data.dataset_writer import RecordedFrame, write_dataset
        from zk0.settings.dataset_settings import SO101_JOINTS

        frame = RecordedFrame(np.zeros(6, np.float32), np.zeros(6, np.float32), {}, "x")

        def episodes():
            yield [frame] * 4
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            write_dataset(tmp_path / "set", episodes(), fps=10, joints=SO101_JOINTS, robot_type="so101_follower")
        assert list(tmp_path.iterdir()) == []

    def test_a_dataset_without_episodes_is_refused(self, tmp_path: Path) -> None:
        from zk0.data.dataset_writer import write_dataset

        with pytest.raises(DatasetError, match="no episode was recorded"):
            write_dataset(tmp_path / "set", [], fps=10, joints=("a",), robot_type="so101_follower")
        assert list(tmp_path.iterdir()) == []

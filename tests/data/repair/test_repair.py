"""Every defect is repaired in a copy or refused by name; everything else stays the same bits."""

import hashlib
import json
import os
import shutil
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from zk0.data.check import check_dataset
from zk0.data.dataset_folder import list_folder
from zk0.data.dataset_info import read_dataset_info
from zk0.data.episode_digests import episode_digests
from zk0.data.episode_table import read_episode_statistics
from zk0.data.frame_table import read_episodes
from zk0.data.repair.repair_dataset import RepairRecord, repair_dataset, source_digest
from zk0.errors import DatasetError

DATA = "data/chunk-000/file-000.parquet"
VIDEOS = [f"videos/observation.images.{c}/chunk-000/file-000.mp4" for c in ("overhead", "wrist")]
REFUSED = {
    "git_lfs_pointers",
    "no_info", "info_without_fps", "info_with_impossible_fps", "version_of_the_future", "no_camera",
    "state_under_another_name_in_info_only", "the_data_is_a_link_out_of_the_folder", "truncated_table",
    "no_task_table_and_two_texts_for_one_number", "no_data_file", "empty_video", "video_truncated_in_its_header",
    "video_truncated_in_its_pictures", "a_video_with_a_hole", "a_row_twice_with_other_numbers",
    "fewer_numbers_than_declared", "impossible_angles", "two_episodes_in_the_same_frames", "no_task_text",
    "rows_of_a_task_that_is_not_there", "tasks_numbered_from_one", "episodes_numbered_from_one",
    "a_video_of_another_rate", "a_feature_key_with_a_slash", "a_video_of_another_size", "a_video_that_ends_too_early",
    "a_video_that_lost_frames_in_the_middle", "two_videos_that_may_be_under_each_others_name",
    "two_episodes_under_each_others_number_in_the_table",
    "a_clock_at_a_third_of_the_rate",
    "states_in_degrees_and_actions_in_radians", "states_in_ticks_and_actions_in_degrees",
}  # fmt: skip
UNITS = {"raw_servo_ticks", "servo_ticks_with_a_lost_reading", "radians"}
OTHER_NUMBERS = {
    *UNITS,
    "a_joint_that_jumps_and_returns", "an_action_that_jumps_and_returns",
    "a_lost_reading", "a_servo_that_is_off", "an_episode_without_motion",
    "an_episode_that_hardly_begins", "actions_that_follow_the_states", "actions_that_are_differences",
    "an_episode_whose_actions_are_differences",
    "a_whole_recording_in_one_episode", "actions_cut_off_at_a_limit", "a_gripper_of_another_calibration",
    "an_episode_replayed", "an_episode_that_is_the_rest_of_another_one",
    "a_joint_that_never_moves",
    "an_episode_twice",
    "actions_are_the_next_states",
    "an_episode_of_one_frame",
}  # fmt: skip


def tree(root: Path) -> dict[str, str]:
    files = (p for p in sorted(root.rglob("*")) if p.is_file() and not p.is_symlink())
    return {p.relative_to(root).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def assert_idempotent(root: Path, target: Path, first: RepairRecord) -> None:
    """A second repair writes nothing, and a repaired copy has nothing to repair."""
    stamps = {p: p.stat().st_mtime_ns for p in target.rglob("*")}
    assert repair_dataset(root, target, dataset="dataset-x")[0] == first
    assert {p: p.stat().st_mtime_ns for p in target.rglob("*")} == stamps
    second, _ = repair_dataset(target, target.with_name("twice"), dataset="dataset-x")
    assert second.repairs == ()
    assert tree(target.with_name("twice")) == tree(target)


def test_a_defect_is_repaired_in_a_copy_or_refused(request, defect, breaker, healthy, tmp_path) -> None:
    name = request.node.callspec.id
    defect[1](breaker)
    before = tree(breaker.root)
    target = tmp_path / "repaired"
    if name in REFUSED:
        unrepairable = [f.rule for f in check_dataset(breaker.root, dataset="dataset-x").errors if f.repair is None]
        with pytest.raises(DatasetError, match="dataset-x: cannot be repaired") as refusal:
            repair_dataset(breaker.root, target, dataset="dataset-x")
        assert all(rule in str(refusal.value) for rule in unrepairable)
        assert {p.name for p in tmp_path.iterdir()} <= {"copy", "elsewhere.parquet"}
        return
    done, after = repair_dataset(breaker.root, target, dataset="dataset-x")
    assert tree(breaker.root) == before, "the original was written to"
    assert after.errors == ()
    assert not any(f.repair for f in after.findings)
    assert after == check_dataset(target, dataset="dataset-x")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["copy", "repaired"]
    remaining = done.episodes
    assert list(remaining) == [i for i in range(4) if i not in done.dropped][: len(remaining)]
    assert len(remaining) >= (1 if name == "a_whole_recording_in_one_episode" else 3)
    if name not in OTHER_NUMBERS:
        numbers = read_episodes(healthy, remaining)
        copied = read_episodes(target, range(len(remaining)))
        for new, old in enumerate(remaining):
            assert copied[new].state.dtype == np.float32
            assert copied[new].state.tobytes() == numbers[old].state.tobytes()
            assert copied[new].action.tobytes() == numbers[old].action.tobytes()
    if after.cameras == ("overhead", "wrist"):
        for video in VIDEOS:
            if (breaker.root / video).exists() and "retime-videos" not in done.repairs:
                assert tree(target)[video] == tree(breaker.root)[video]
    assert_idempotent(breaker.root, target, done)


def test_nothing_to_repair_is_copied_bit_for_bit(healthy, tmp_path) -> None:
    done, after = repair_dataset(healthy, tmp_path / "copy", dataset="x")
    assert (done.repairs, done.dropped, after.findings) == ((), (), ())
    assert tree(tmp_path / "copy") == tree(healthy)
    assert repair_dataset(healthy, tmp_path / "copy", dataset="x")[0] == done


@pytest.mark.parametrize(
    "name", ["every_row_twice", "all_rows_twice_one_after_the_other", "older_files_beside_newer_ones"]
)
def test_doubled_data_is_repaired(name, defects, breaker, healthy, tmp_path) -> None:
    defects[name][1](breaker)
    _, after = repair_dataset(breaker.root, tmp_path / "repaired", dataset="x")
    assert after.frames == 48
    assert pq.read_table(tmp_path / "repaired" / DATA).num_rows == 48
    assert episode_digests(tmp_path / "repaired", range(4)) == episode_digests(healthy, range(4))


def test_timestamps_that_are_right_stay_the_same_bits(breaker, tmp_path) -> None:
    def late(times: list[float]) -> list[float]:
        return [t + 5e-5 if 12 <= n < 24 else t + 0.3 * (n < 12) for n, t in enumerate(times)]

    breaker.column(DATA, "timestamp", late)
    stored = pq.read_table(breaker.root / DATA)["timestamp"].to_numpy()
    repair_dataset(breaker.root, tmp_path / "repaired", dataset="x")
    copied = pq.read_table(tmp_path / "repaired" / DATA)["timestamp"].to_numpy()
    assert copied[:12].tolist() == (np.arange(12) / 10).astype(np.float32).tolist()
    assert copied[12:].tobytes() == stored[12:].tobytes()


def test_a_lost_episode_is_dropped_and_the_others_are_renumbered(breaker, healthy, tmp_path) -> None:
    breaker.column(DATA, "action", lambda v: [[float("inf")] * 6 if n == 15 else a for n, a in enumerate(v)])
    done, after = repair_dataset(breaker.root, tmp_path / "repaired", dataset="x")
    assert (done.dropped, done.episodes, after.episodes, after.frames) == ((1,), (0, 2, 3), 3, 36)
    table = pq.read_table(tmp_path / "repaired" / DATA)
    assert np.unique(table["episode_index"]).tolist() == [0, 1, 2]
    assert table["index"].to_pylist() == list(range(36))
    rows = pq.read_table(tmp_path / "repaired/meta/episodes/chunk-000/file-000.parquet").to_pylist()
    assert [r["videos/observation.images.wrist/from_timestamp"] for r in rows] == pytest.approx([0.0, 2.4, 3.6])
    assert [(r["dataset_from_index"], r["dataset_to_index"]) for r in rows] == [(0, 12), (12, 24), (24, 36)]
    statistics = json.loads((tmp_path / "repaired/meta/stats.json").read_text())
    remaining = np.concatenate([e.action for e in read_episodes(healthy, [0, 2, 3]).values()]).astype(np.float64)
    np.testing.assert_allclose(statistics["action"]["mean"], remaining.mean(0), atol=1e-12)
    np.testing.assert_allclose(statistics["action"]["std"], remaining.std(0), atol=1e-12)


def test_ticks_become_degrees(defects, breaker, healthy, tmp_path) -> None:
    defects["raw_servo_ticks"][1](breaker)
    stored = read_episodes(breaker.root, range(4))
    repair_dataset(breaker.root, tmp_path / "repaired", dataset="x")
    for index, episode in read_episodes(tmp_path / "repaired", range(4)).items():
        by_hand = ((stored[index].state.astype(np.float64) - 2048) * 360 / 4096).astype(np.float32)
        assert episode.state.tobytes() == by_hand.tobytes()
        np.testing.assert_allclose(episode.action, read_episodes(healthy, [index])[index].action, atol=0.045)


def test_radians_become_degrees(defects, breaker, healthy, tmp_path) -> None:
    defects["radians"][1](breaker)
    repair_dataset(breaker.root, tmp_path / "repaired", dataset="x")
    original = read_episodes(healthy, range(4))
    for index, episode in read_episodes(tmp_path / "repaired", range(4)).items():
        np.testing.assert_allclose(episode.state, original[index].state, atol=1e-4)


def test_keys_cameras_and_joints_are_renamed(copy, healthy, tmp_path) -> None:
    rename = {"observation.images.wrist": "observation.images.hand", "gripper.pos": "jaw.pos"}
    done, after = repair_dataset(copy, tmp_path / "renamed", dataset="x", rename_map=rename)
    assert done.repairs == ("rename-keys",)
    assert after.cameras == ("hand", "overhead")
    assert after.state_names[5] == "jaw.pos"
    assert episode_digests(tmp_path / "renamed", range(4)) == episode_digests(healthy, range(4))
    videos = tree(tmp_path / "renamed")
    assert videos["videos/observation.images.hand/chunk-000/file-000.mp4"] == tree(healthy)[VIDEOS[1]]
    assert repair_dataset(tmp_path / "renamed", tmp_path / "again", dataset="x", rename_map=rename)[0].repairs == ()


def test_an_unrelated_target_is_not_touched(copy, breaker, tmp_path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("irreplaceable")
    with pytest.raises(DatasetError, match="exists already"):
        repair_dataset(copy, tmp_path / "mine", dataset="x")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "irreplaceable"
    with pytest.raises(DatasetError, match="inside the dataset"):
        repair_dataset(copy, copy / "data" / "repaired", dataset="x")
    breaker.info(lambda i: i.update(total_frames=3))
    repair_dataset(copy, tmp_path / "one", dataset="x")
    breaker.info(lambda i: i.update(total_frames=4))
    with pytest.raises(DatasetError, match="repaired from another original"):
        repair_dataset(copy, tmp_path / "one", dataset="x")


def test_another_content_of_a_video_is_another_original(copy, breaker, tmp_path) -> None:
    """A video that was damaged is replaced by a whole one of the same size."""
    whole = breaker.video().read_bytes()
    breaker.video().write_bytes(whole[: len(whole) // 2] + bytes(400) + whole[len(whole) // 2 + 400 :])
    breaker.info(lambda i: i.update(total_frames=3))
    damaged = source_digest(copy, {})
    breaker.video().write_bytes(whole)
    assert source_digest(copy, {}) != damaged
    repair_dataset(copy, tmp_path / "one", dataset="x", source=damaged)
    with pytest.raises(DatasetError, match="repaired from another original"):
        repair_dataset(copy, tmp_path / "one", dataset="x")


def test_no_file_outside_the_folder_is_copied(copy, tmp_path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("secret")
    (copy / "meta" / "notes.txt").symlink_to(secret)
    os.mkfifo(copy / "data" / "pipe.parquet")
    repair_dataset(copy, tmp_path / "repaired", dataset="x")
    assert not list((tmp_path / "repaired").rglob("notes.txt"))
    assert not any(
        "secret" in p.read_text(errors="ignore") for p in (tmp_path / "repaired").rglob("*.*") if p.is_file()
    )


# ── older formats ─────────────────────────────────────────────────────────────


def as_v2(root: Path, target: Path, version: str) -> Path:
    """The same dataset in the older layout: one parquet and one video for each episode, metadata as JSON lines."""
    info = json.loads((root / "meta/info.json").read_text())
    info |= {
        "codebase_version": version,
        "total_chunks": 1,
        "total_videos": 8,
        "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
    }
    (target / "meta").mkdir(parents=True)
    (target / "meta/info.json").write_text(json.dumps(info))
    (target / "meta/tasks.jsonl").write_text(json.dumps({"task_index": 0, "task": "Pick up the cube."}))
    table = pq.read_table(root / DATA)
    lines, statistics, keys = [], [], ("observation.state", "action")
    moments = read_episode_statistics(list_folder(root), read_dataset_info(list_folder(root)), keys)
    for e in range(4):
        path = target / f"data/chunk-000/episode_{e:06d}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table.filter(pa.compute.equal(table["episode_index"], e)), path)
        lines.append(json.dumps({"episode_index": e, "tasks": ["Pick up the cube."], "length": 12}))
        statistics.append(json.dumps({"episode_index": e, "stats": {key: moments[key][e] for key in keys}}))
        for c in ("overhead", "wrist"):
            video = target / f"videos/chunk-000/observation.images.{c}/episode_{e:06d}.mp4"
            video.parent.mkdir(parents=True, exist_ok=True)
            with av.open(str(video), "w") as container:
                stream = container.add_stream("libx264", rate=10)
                stream.width = stream.height = 64
                stream.pix_fmt = "yuv420p"
                rng = np.random.default_rng(10 * e + len(c))
                for i in range(12):
                    picture = rng.integers(0, 60, (64, 64, 3), dtype=np.uint8)
                    picture[4 * i : 4 * i + 16] = 200
                    container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
                container.mux(stream.encode())
    (target / "meta/episodes.jsonl").write_text("\n".join(lines))
    if version == "v2.1":
        (target / "meta/episodes_stats.jsonl").write_text("\n".join(statistics))
    else:
        shutil.copy(root / "meta/stats.json", target / "meta/stats.json")
    return target


@pytest.mark.parametrize("version", ["v2.0", "v2.1"])
def test_older_formats_become_v3(version, healthy, tmp_path) -> None:
    old = as_v2(healthy, tmp_path / "old", version)
    rules = {f.rule for f in check_dataset(old, dataset="x").findings}
    assert rules == {"format-version"}
    done, after = repair_dataset(old, tmp_path / "new", dataset="x")
    assert done.repairs[0] == "convert-to-v3"
    assert after.findings == ()
    assert episode_digests(tmp_path / "new", range(4)) == episode_digests(healthy, range(4))
    bytes_of = {h for f, h in tree(old).items() if f.endswith("mp4")}
    assert {h for f, h in tree(tmp_path / "new").items() if f.endswith("mp4")} == bytes_of


@pytest.mark.parametrize("kept", [None, -20], ids=["no file", "the last line half written"])
def test_the_episode_table_of_an_older_format_is_built_again(healthy, tmp_path, kept) -> None:
    old = as_v2(healthy, tmp_path / "old", "v2.1")
    table = old / "meta/episodes.jsonl"
    table.unlink() if kept is None else table.write_text(table.read_text()[:kept])
    assert {f.rule for f in check_dataset(old, dataset="x").findings} == {"format-version", "episode-table"}
    done, after = repair_dataset(old, tmp_path / "new", dataset="x")
    assert "rebuild-episodes" in done.repairs
    assert (after.findings, after.episodes, after.frames) == ((), 4, 48)


def test_wrong_statistics_of_an_older_format_are_found(healthy, tmp_path) -> None:
    old = as_v2(healthy, tmp_path / "old", "v2.1")
    lines = [json.loads(line) for line in (old / "meta/episodes_stats.jsonl").read_text().splitlines()]
    lines[2]["stats"]["action"]["mean"][4] += 3.0
    (old / "meta/episodes_stats.jsonl").write_text("\n".join(map(json.dumps, lines)))
    findings = {f.rule: f for f in check_dataset(old, dataset="x").findings}
    assert findings.keys() == {"format-version", "episode-statistics"}
    assert findings["episode-statistics"].where == "meta/episodes_stats.jsonl action, episode 2"
    done, after = repair_dataset(old, tmp_path / "new", dataset="x")
    assert {"convert-to-v3", "recompute-statistics"} <= set(done.repairs)
    assert after.findings == ()


@pytest.mark.parametrize(
    "text",
    ["{}", "[]", '{"episode_index": 0, "stats": [1]}', '{"episode_index": "x", "stats": {"action": {"mean": 1}}}'],
)
def test_older_statistics_of_other_kinds(healthy, tmp_path, text) -> None:
    old = as_v2(healthy, tmp_path / "old", "v2.1")
    (old / "meta/episodes_stats.jsonl").write_text(text)
    assert {f.rule for f in check_dataset(old, dataset="x").findings} == {"format-version"}


def load(root: Path):
    from lerobot.datasets import LeRobotDataset

    steps = [i / 10 for i in range(5)]
    return LeRobotDataset("local/x", root=root, video_backend="pyav", delta_timestamps={"action": steps})


def assert_same_items(ours, theirs) -> None:
    assert len(ours) == len(theirs) == len(ours.hf_dataset)
    for i in range(len(ours)):
        a, b = ours[i], theirs[i]
        assert a.keys() == b.keys()
        assert a["task"] == b["task"]
        for key in a.keys() - {"task"}:
            assert a[key].shape == b[key].shape, key
            assert (a[key] == b[key]).all(), (i, key)


def test_converted_as_lerobots_own_converter_does(healthy, tmp_path) -> None:
    from lerobot.scripts.convert_dataset_v21_to_v30 import convert_dataset

    old = as_v2(healthy, tmp_path / "old", "v2.1")
    repair_dataset(old, tmp_path / "ours", dataset="x")
    convert_dataset("local/x", root=old, push_to_hub=False)
    assert_same_items(load(tmp_path / "ours"), load(old))


@pytest.mark.parametrize(
    "name",
    ["every_row_twice", "older_files_beside_newer_ones", "clock_times", "double_instead_of_float", "no_index_column",
     "an_undeclared_column", "a_camera_under_a_bare_name", "rows_out_of_order", "channels_first"],
)  # fmt: skip
def test_lerobot_reads_the_same_from_the_copy(name, defects, breaker, healthy, tmp_path) -> None:
    defects[name][1](breaker)
    repair_dataset(breaker.root, tmp_path / "repaired", dataset="x")
    assert_same_items(load(tmp_path / "repaired"), load(healthy))

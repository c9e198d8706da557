"""A repaired copy shows each row its own picture, or the repair refuses."""

import shutil
from fractions import Fraction

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from defects import CASES, DATA, EPISODES, WRIST, read_video, write_video
from picture_alignment import misplaced_pictures

from zk0.data.check import check_dataset
from zk0.data.repair.repair_dataset import repair_dataset
from zk0.errors import DatasetError

FROM, TO, FILE = (f"videos/{WRIST}/{name}" for name in ("from_timestamp", "to_timestamp", "file_index"))


def repaired(root, rules: set[str], dropped: tuple[int, ...] = ()):
    """Repair a dataset whose errors are `rules`; the pictures of the copy belong to their rows."""
    report = check_dataset(root, dataset="x")
    assert {f.rule for f in report.errors} == rules, "\n".join(map(str, report.findings))
    target = root.with_name("repaired")
    done, after = repair_dataset(root, target, dataset="x")
    assert done.dropped == dropped
    assert misplaced_pictures(target) == {}
    return after


def split_wrist_video(b, second: slice = slice(24, 48), first: slice = slice(0, 24)) -> None:
    """Episodes 2 and 3 lie in a second video file of the wrist camera."""
    pictures = read_video(b.video())
    for part, name in ((first, "file-000.mp4"), (second, "file-001.mp4")):
        chosen = pictures[part]
        write_video(b.video().with_name(name), len(chosen), chosen.__getitem__)
    b.column(EPISODES, FILE, lambda v: [0, 0, 1, 1])


def test_the_healthy_dataset_is_aligned(healthy) -> None:
    assert misplaced_pictures(healthy) == {}


def test_frames_lost_without_a_trace_cost_every_episode_of_their_file(breaker) -> None:
    pictures = read_video(breaker.video())
    kept = pictures[:20] + pictures[22:]
    write_video(breaker.video(), 46, kept.__getitem__)
    with pytest.raises(DatasetError, match="46 frames for 48 rows; no timestamp shows where"):
        repair_dataset(breaker.root, breaker.root.with_name("repaired"), dataset="x")


def test_episodes_of_other_files_are_not_suspect(breaker) -> None:
    split_wrist_video(breaker, second=slice(24, 46))
    breaker.column(EPISODES, FROM, lambda v: [0.0, 1.2, 0.0, 1.2])
    breaker.column(EPISODES, TO, lambda v: [1.2, 2.4, 1.2, 2.4])
    assert repaired(breaker.root, {"video-frames"}, dropped=(2, 3)).episodes == 2


def test_a_gap_in_the_times_proves_where_frames_were_lost(breaker) -> None:
    pictures, kept = read_video(breaker.video()), [i for i in range(48) if i not in (17, 18)]
    write_video(breaker.video(), 46, lambda i: pictures[kept[i]], seconds=np.array(kept) / 10)
    assert repaired(breaker.root, {"video-frames"}, dropped=(1,)).episodes == 3


def test_a_clip_that_the_table_knows_to_be_short_costs_its_own_episode(breaker) -> None:
    pictures = read_video(breaker.video())
    kept = pictures[:16] + pictures[18:]
    write_video(breaker.video(), 46, kept.__getitem__)
    breaker.column(EPISODES, TO, lambda v: [s - 0.2 * (i >= 1) for i, s in enumerate(v)])
    breaker.column(EPISODES, FROM, lambda v: [s - 0.2 * (i >= 2) for i, s in enumerate(v)])
    assert repaired(breaker.root, {"video-frames"}, dropped=(1,)).episodes == 3


def state_short_clip(b, episode: int) -> None:
    """The table says that the clip of an episode is two frames short; the clips after it in the file start earlier."""
    starts = read_column(b, FROM)
    b.column(EPISODES, TO, lambda v: [s - 0.2 * (i == episode or s > v[episode]) for i, s in enumerate(v)])
    b.column(EPISODES, FROM, lambda v: [s - 0.2 * (s > starts[episode]) for s in v])


def read_column(b, name: str) -> list[float]:
    return pq.read_table(b.root / EPISODES)[name].to_pylist()


def test_a_short_clip_at_the_end_of_a_file_costs_its_own_episode(breaker) -> None:
    pictures = read_video(breaker.video())
    write_video(breaker.video(), 46, pictures.__getitem__)
    breaker.column(EPISODES, TO, lambda v: [*v[:3], v[3] - 0.2])
    assert repaired(breaker.root, {"video-frames"}, dropped=(3,)).episodes == 3


def test_a_stated_short_clip_does_not_hide_frames_lost_without_a_trace(breaker) -> None:
    """Two frames of episode 0 are lost and stated, two of episode 2 are lost in silence."""
    pictures = read_video(breaker.video())
    kept = pictures[:5] + pictures[7:30] + pictures[32:]
    write_video(breaker.video(), 44, kept.__getitem__)
    state_short_clip(breaker, 0)
    with pytest.raises(DatasetError, match="44 frames for 48 rows; no timestamp shows where"):
        repair_dataset(breaker.root, breaker.root.with_name("repaired"), dataset="x")


def test_a_stated_short_clip_in_another_file_does_not_either(breaker) -> None:
    pictures = read_video(breaker.video())
    split_wrist_video(breaker)
    first, second = pictures[:5] + pictures[7:24], pictures[24:30] + pictures[32:]
    for part, name in ((first, "file-000.mp4"), (second, "file-001.mp4")):
        write_video(breaker.video().with_name(name), 22, part.__getitem__)
    breaker.column(EPISODES, FROM, lambda v: [0.0, 1.0, 0.0, 1.2])
    breaker.column(EPISODES, TO, lambda v: [1.0, 2.2, 1.2, 2.4])
    assert repaired(breaker.root, {"video-frames"}, dropped=(0, 2, 3)).episodes == 1


def test_a_gap_does_not_prove_frames_that_were_lost_elsewhere(breaker) -> None:
    """Two frames of episode 1 left a gap in the times, two of episode 2 none."""
    pictures = read_video(breaker.video())
    times = np.delete(np.arange(46), (17, 18)) / 10
    kept = [i for i in range(48) if i not in (17, 18, 30, 31)]
    write_video(breaker.video(), 44, lambda i: pictures[kept[i]], seconds=times)
    with pytest.raises(DatasetError, match="44 frames for 48 rows; no timestamp shows where"):
        repair_dataset(breaker.root, breaker.root.with_name("repaired"), dataset="x")


def test_offsets_that_count_on_after_a_merge_are_counted_anew(breaker) -> None:
    split_wrist_video(breaker)
    assert repaired(breaker.root, {"clip-places"}).episodes == 4


def test_offsets_beside_the_grid_of_frames_are_moved_to_it(breaker) -> None:
    breaker.column(EPISODES, FROM, lambda v: [v[0], *(s + 0.03 for s in v[1:])])
    assert repaired(breaker.root, {"clip-places"}).episodes == 4


def test_a_discarded_take_between_two_clips_moves_no_picture(breaker) -> None:
    pictures = read_video(breaker.video())
    longer = pictures[:24] + pictures[5:12] + pictures[24:]
    write_video(breaker.video(), 55, longer.__getitem__)
    breaker.column(EPISODES, TO, lambda v: [s + 0.7 * (i >= 1) for i, s in enumerate(v)])
    breaker.column(EPISODES, FROM, lambda v: [s + 0.7 * (i >= 2) for i, s in enumerate(v)])
    assert repaired(breaker.root, set()).episodes == 4


@pytest.mark.parametrize("orphan", [False, True], ids=["in a named file", "in a file that nothing names"])
def test_rows_in_another_file_than_the_table_names_are_kept(breaker, orphan) -> None:
    breaker.column(EPISODES, "data/file_index", lambda v: [1] * 4 if orphan else [0, 0, 1, 1])
    assert repaired(breaker.root, {"misplaced-rows"}).frames == 48


def test_rows_in_a_file_beside_the_named_one_are_kept(breaker) -> None:
    table = pq.read_table(breaker.root / DATA)
    pq.write_table(table.slice(0, 24), breaker.root / DATA)
    pq.write_table(table.slice(24), (breaker.root / DATA).with_name("file-001.parquet"))
    assert repaired(breaker.root, {"misplaced-rows"}).frames == 48


def shuffle_over_files(b) -> None:
    """The rows of every episode lie in no order in two files."""
    table = pq.read_table(b.root / DATA)
    order = np.random.default_rng(0).permutation(48)
    for part, name in ((order[:24], "file-000.parquet"), (order[24:], "file-001.parquet")):
        pq.write_table(table.take(part), (b.root / DATA).with_name(name))


def late(b) -> None:
    for file in b.root.rglob("data/*/*.parquet"):
        b.column(str(file.relative_to(b.root)), "timestamp", lambda v: [1.03 * t for t in v])


def double(b) -> None:
    wide = pa.float64()
    b.table(DATA, lambda t: t.set_column(t.schema.get_field_index("timestamp"), "timestamp", t["timestamp"].cast(wide)))


@pytest.mark.parametrize(
    ("and_then", "rule"), [(late, "timestamps"), (double, "column-types")], ids=["late clock", "two types"]
)
def test_rows_that_are_shuffled_over_files_return_to_their_order(breaker, and_then, rule) -> None:
    stored = pq.read_table(breaker.root / DATA)
    shuffle_over_files(breaker)
    and_then(breaker)
    repaired(breaker.root, {"misplaced-rows", "row-order", rule})
    copied = pq.read_table(breaker.root.with_name("repaired") / DATA)
    for column in ("observation.state", "action", "frame_index", "episode_index"):
        assert copied[column].to_pylist() == stored[column].to_pylist()


def test_every_second_row_in_a_file_that_nothing_names_is_kept(breaker) -> None:
    stored = pq.read_table(breaker.root / DATA)["action"].to_pylist()
    CASES["every_second_row_in_a_file_that_the_table_does_not_name"][1](breaker)
    repaired(breaker.root, {"misplaced-rows", "row-order"})
    assert pq.read_table(breaker.root.with_name("repaired") / DATA)["action"].to_pylist() == stored


def test_files_with_other_list_types_stay_files_of_their_own(breaker) -> None:
    table = pq.read_table(breaker.root / DATA)
    at, wide = table.schema.get_field_index("action"), pa.array(table["action"].to_pylist(), pa.list_(pa.float64()))
    pq.write_table(table.slice(0, 24), breaker.root / DATA)
    other = (breaker.root / DATA).with_name("file-001.parquet")
    pq.write_table(table.set_column(at, "action", wide).slice(24), other)
    breaker.column(EPISODES, "data/file_index", lambda v: [0, 0, 1, 1])
    assert repaired(breaker.root, {"column-types"}).frames == 48


def test_a_lost_beginning_moves_no_picture(breaker) -> None:
    """Row 5 is the first of episode 1 that is left; its picture is the sixth of the clip."""
    breaker.table(DATA, lambda t: pa.concat_tables([t.slice(0, 12), t.slice(17)]))
    target = breaker.root.with_name("repaired")
    done, after = repair_dataset(breaker.root, target, dataset="x")
    assert (done.dropped, after.frames) == ((), 43)
    shown = [5, 6, 7, 8, 9, 10, 11]
    assert misplaced_pictures(target) == {(1, "observation.images.overhead"): shown, (1, WRIST): shown}


def test_rows_of_a_file_that_is_gone_are_dropped(breaker) -> None:
    table = pq.read_table(breaker.root / DATA)
    pq.write_table(table.slice(0, 24), breaker.root / DATA)
    breaker.column(EPISODES, "data/file_index", lambda v: [0, 0, 1, 1])
    rules = {f.rule for f in check_dataset(breaker.root, dataset="x").errors}
    assert "missing-data" in rules
    assert "misplaced-rows" not in rules


@pytest.mark.parametrize("where", ["video/{}", "videos/old/{}"], ids=["video/", "another folder of the camera"])
def test_videos_in_another_folder_are_found(breaker, where) -> None:
    old = breaker.root / "videos" / WRIST
    new = breaker.root / where.format(WRIST)
    new.parent.mkdir()
    shutil.move(old, new)
    assert repaired(breaker.root, {"clip-places"}).cameras == ("overhead", "wrist")


def test_a_wrong_file_number_is_corrected_where_only_one_video_fits(breaker) -> None:
    split_wrist_video(breaker, first=slice(0, 12), second=slice(12, 48))
    breaker.column(EPISODES, FILE, lambda v: [0, 7, 7, 7])
    breaker.column(EPISODES, FROM, lambda v: [0.0, 0.0, 1.2, 2.4])
    breaker.column(EPISODES, TO, lambda v: [1.2, 1.2, 2.4, 3.6])
    assert repaired(breaker.root, {"clip-places"}).episodes == 4


@pytest.mark.parametrize("numbers", [[1, 0, 0, 0], [7, 0, 0, 0], [5, 6, 6, 6]], ids=["exchanged", "moved on", "both"])
def test_videos_under_other_names_are_found_by_their_numbers_of_frames(breaker, numbers) -> None:
    split_wrist_video(breaker, first=slice(0, 12), second=slice(12, 48))
    breaker.column(EPISODES, FILE, lambda v: numbers)
    breaker.column(EPISODES, FROM, lambda v: [0.0, 0.0, 1.2, 2.4])
    breaker.column(EPISODES, TO, lambda v: [1.2, 1.2, 2.4, 3.6])
    assert repaired(breaker.root, {"clip-places"}).episodes == 4


@pytest.mark.parametrize(
    "name",
    ["two_videos_that_may_be_under_each_others_name", "two_episodes_under_each_others_number_in_the_table"],
)
def test_names_and_numbers_in_doubt_are_refused(breaker, name) -> None:
    CASES[name][1](breaker)
    with pytest.raises(DatasetError, match=r"their names may be exchanged|states the rows of other episodes"):
        repair_dataset(breaker.root, breaker.root.with_name("repaired"), dataset="x")


@pytest.mark.parametrize("numbers", [[0, 0, 7, 7], [1, 1, 2, 2]], ids=["one wrong", "all off by one"])
def test_a_wrong_file_number_is_refused_where_another_video_fits_as_well(breaker, numbers) -> None:
    split_wrist_video(breaker)
    breaker.column(EPISODES, FILE, lambda v: numbers)
    breaker.column(EPISODES, FROM, lambda v: [0.0, 1.2, 0.0, 1.2])
    breaker.column(EPISODES, TO, lambda v: [1.2, 2.4, 1.2, 2.4])
    with pytest.raises(DatasetError, match=r"no episode names .*; rename the video that belongs to these episodes"):
        repair_dataset(breaker.root, breaker.root.with_name("repaired"), dataset="x")


def test_another_fps_in_info_is_corrected_and_the_motion_is_not_stretched(breaker) -> None:
    stored = pq.read_table(breaker.root / DATA)["timestamp"].to_pylist()
    breaker.info(lambda i: i.update(fps=30))
    assert repaired(breaker.root, {"frame-rate"}).fps == 10
    assert pq.read_table(breaker.root.with_name("repaired") / DATA)["timestamp"].to_pylist() == stored


def test_a_clock_of_another_rate_is_not_regularized_without_videos_that_confirm_the_fps(breaker) -> None:
    jitter = np.random.default_rng(0).uniform(0, 0.02, 48)
    breaker.column(DATA, "timestamp", lambda v: [t + j for t, j in zip(v, jitter, strict=True)])
    breaker.info(lambda i: i.update(fps=30))
    for video in breaker.root.rglob("*.mp4"):
        video.unlink()
    findings = {f.rule: f for f in check_dataset(breaker.root, dataset="x").findings}
    assert findings["timestamps"].repair is None


@pytest.mark.parametrize("jitter", [0.0, 0.03], ids=["regular", "jittered"])
def test_the_motion_is_not_stretched_to_the_rate_of_fps_and_videos(breaker, jitter) -> None:
    noise = np.random.default_rng(0).uniform(0, jitter, 48)
    breaker.column(DATA, "timestamp", lambda v: [3 * t + n for t, n in zip(v, noise, strict=True)])
    (finding,) = check_dataset(breaker.root, dataset="x").findings
    assert (finding.rule, finding.repair) == ("timestamps", None)
    assert "mean rate 3.3" in finding.found
    assert "either fps and videos or the timestamps are wrong: if 10 is right" in finding.expected


@pytest.mark.parametrize("rate", [Fraction(10_000, 1001), Fraction(1017, 100)])
def test_a_video_with_a_frame_for_every_row_at_nearly_the_rate_gets_new_times(breaker, rate) -> None:
    pictures = read_video(breaker.video())
    write_video(breaker.video(), 48, pictures.__getitem__, seconds=[float(i / rate) for i in range(48)])
    assert repaired(breaker.root, {"video-times"}).episodes == 4


def test_all_videos_of_another_rate_are_one_finding(breaker) -> None:
    split_wrist_video(breaker)
    breaker.column(EPISODES, FROM, lambda v: [0.0, 1.2, 0.0, 1.2])
    breaker.column(EPISODES, TO, lambda v: [1.2, 2.4, 1.2, 2.4])
    for video in breaker.root.rglob("*.mp4"):
        pictures = read_video(video)
        write_video(video, len(pictures), pictures.__getitem__, seconds=[1.001 * i / 10 for i in range(len(pictures))])
    (finding,) = check_dataset(breaker.root, dataset="x").findings
    assert finding.rule == "video-times"
    assert finding.where.count(".mp4") == 3


def test_all_short_videos_of_a_camera_are_one_finding(breaker) -> None:
    split_wrist_video(breaker, first=slice(0, 22), second=slice(24, 46))
    breaker.column(EPISODES, FROM, lambda v: [0.0, 1.2, 0.0, 1.2])
    breaker.column(EPISODES, TO, lambda v: [1.2, 2.4, 1.2, 2.4])
    (finding,) = check_dataset(breaker.root, dataset="x").findings
    assert (finding.rule, finding.episodes) == ("video-frames", (0, 1, 2, 3))
    assert finding.where.count(".mp4") == 2


def test_uneven_times_become_even_without_encoding_again(breaker) -> None:
    pictures, jitter = read_video(breaker.video()), np.random.default_rng(1).uniform(0, 0.06, 48)
    write_video(breaker.video(), 48, pictures.__getitem__, seconds=np.arange(48) / 10 + jitter)
    before = read_video(breaker.video())
    repaired(breaker.root, {"video-times"})
    after = read_video(breaker.video().as_posix().replace("/copy/", "/repaired/"))
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))


def pose(rows: list) -> list:
    """Meters, radians and a gripper instead of joints."""
    values = np.array(rows)
    return np.concatenate([values[:, :3] / 400, values[:, 3:5] / 60, values[:, 5:]], axis=1).astype("f4").tolist()


@pytest.mark.parametrize(
    ("names", "converts"),
    [
        (["ee.x", "ee.y", "ee.z", "ee.wx", "ee.wy", "ee.gripper_pos"], False),
        (["x", "y", "z", "rx", "ry", "gripper"], False),
        (["ee_0", "ee_1", "ee_2", "ee_3", "ee_4", "ee_5"], False),
        (["tcp_pose_0", "tcp_pose_1", "tcp_pose_2", "tcp_rot_0", "tcp_rot_1", "gripper"], False),
        (["head_pan", "head_tilt", "torso", "hip", "knee", "gripper"], False),
        (["motor_0", "motor_1", "motor_2", "motor_3", "motor_4", "motor_5"], True),
        (None, True),
    ],
)
def test_units_follow_joint_names_and_only_without_them_the_robot_type(breaker, names, converts) -> None:
    for key in ("observation.state", "action"):
        breaker.column(DATA, key, pose)
        breaker.info(lambda i, key=key: i["features"][key].update(names=names))
    breaker.column(DATA, "action", lambda v: [[*r[:5], abs(r[5]) % 3] for r in v])
    breaker.column(DATA, "observation.state", lambda v: [[*r[:5], abs(r[5]) % 3] for r in v])
    repairs = {f.repair for f in check_dataset(breaker.root, dataset="x").findings}
    assert ("convert-units" in repairs) is converts


def test_a_depth_camera_is_no_color_camera_and_survives_a_repair(breaker) -> None:
    depth = "observation.images.depth"
    shutil.copytree(breaker.root / "videos" / WRIST, breaker.root / "videos" / depth)
    write_video(breaker.root / f"videos/{depth}/chunk-000/file-000.mp4", 48, lambda i: np.zeros((64, 64, 3), np.uint8))
    declared = {"dtype": "video", "shape": [64, 64, 1], "names": None, "info": {"video.is_depth_map": True}}
    breaker.info(lambda i: i["features"].update({depth: declared}))

    def add(table):
        for name in ("chunk_index", "file_index", "from_timestamp", "to_timestamp"):
            table = table.append_column(f"videos/{depth}/{name}", table[f"videos/{WRIST}/{name}"])
        return table

    breaker.table(EPISODES, add)
    report = check_dataset(breaker.root, dataset="x")
    assert (report.findings, report.cameras) == ((), ("overhead", "wrist"))
    breaker.info(lambda i: i.update(total_frames=7))
    repair_dataset(breaker.root, breaker.root.with_name("repaired"), dataset="x")
    assert list((breaker.root.with_name("repaired") / "videos" / depth).rglob("*.mp4"))

"""Ways to break the healthy dataset, at least one for each rule, with the rules that are broken then and no others."""

import io
import shutil
from collections.abc import Callable, Sequence
from fractions import Fraction

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageFilter

DATA = "data/chunk-000/file-000.parquet"
EPISODES = "meta/episodes/chunk-000/file-000.parquet"
TASKS = "meta/tasks.parquet"
STATE, WRIST = "observation.state", "observation.images.wrist"
CASES: dict[str, tuple[set[str], Callable]] = {}


def defect(*rules: str) -> Callable:
    """Register a way to break the healthy dataset, and the rules that it breaks."""

    def register(break_it: Callable) -> Callable:
        CASES[break_it.__name__] = (set(rules), break_it)
        return break_it

    return register


# ── format ────────────────────────────────────────────────────────────────────


@defect("info")
def no_info(b) -> None:
    (b.root / "meta/info.json").unlink()


@defect("info")
def info_without_fps(b) -> None:
    b.info(lambda i: i.pop("fps"))


@defect("info")
def info_with_impossible_fps(b) -> None:
    b.info(lambda i: i.update(fps=float("nan")))


@defect("format-version")
def version_of_the_future(b) -> None:
    b.info(lambda i: i.update(codebase_version="v3.9"))


@defect("feature-keys", "undeclared-columns", "statistics-unknown")
def state_under_another_name_in_info_only(b) -> None:
    b.info(lambda i: i["features"].update({"qpos2": i["features"].pop(STATE)}))
    b.table(DATA, lambda t: t.append_column("qpos2", t[STATE]))


@defect("feature-keys", "statistics-unknown")
def state_under_another_name(b) -> None:
    b.info(lambda i: i["features"].update(state=i["features"].pop(STATE)))
    b.table(DATA, lambda t: t.rename_columns(["state" if c == STATE else c for c in t.column_names]))


@defect("feature-names")
def a_feature_key_with_a_slash(b) -> None:
    b.info(lambda i: i["features"].update({"gripper/force": {"dtype": "float32", "shape": [1], "names": None}}))
    b.table(DATA, lambda t: t.append_column("gripper/force", pa.array(np.zeros(t.num_rows, np.float32))))


@defect("default-features")
def a_default_feature_is_not_declared(b) -> None:
    b.info(lambda i: i["features"].pop("task_index"))


@defect("undeclared-columns")
def an_undeclared_column(b) -> None:
    b.table(DATA, lambda t: t.append_column("next.done", pa.array([False] * t.num_rows)))


@defect("missing-columns")
def no_index_column(b) -> None:
    b.table(DATA, lambda t: t.drop_columns(["index"]))


@defect("missing-columns")
def no_frame_index_column(b) -> None:
    b.table(DATA, lambda t: t.drop_columns(["frame_index"]))


@defect("column-types")
def double_instead_of_float(b) -> None:
    def widen(t: pa.Table) -> pa.Table:
        at = t.schema.get_field_index("action")
        return t.set_column(at, "action", t["action"].cast(pa.list_(pa.float64(), 6)))

    b.table(DATA, widen)


# ── files ─────────────────────────────────────────────────────────────────────


@defect("outside-folder")
def a_link_out_of_the_folder(b) -> None:
    (b.root / "notes.txt").symlink_to("/etc/hostname")


@defect("outside-folder", "missing-data")
def the_data_is_a_link_out_of_the_folder(b) -> None:
    target = b.root.parent / "elsewhere.parquet"
    (b.root / DATA).rename(target)
    (b.root / DATA).symlink_to(target)


@defect("doubled-files")
def older_files_beside_newer_ones(b) -> None:
    table = pq.read_table(b.root / DATA)
    for e in range(4):
        rows = table.filter(pa.compute.equal(table["episode_index"], e))
        pq.write_table(rows, b.root / f"data/chunk-000/episode_{e:06d}.parquet")


@defect("orphan-data")
def a_table_that_nothing_names(b) -> None:
    pq.write_table(pa.table({"t": [1.0], "arm1_j1": [5]}), b.root / "data/chunk-000/other.parquet")


@defect("orphan-files")
def a_video_that_nothing_names(b) -> None:
    shutil.copy(b.video(), b.video().with_name("file-007.mp4"))


@defect("unreadable-data")
def a_broken_table_that_nothing_names(b) -> None:
    (b.root / "data/chunk-000/half.parquet").write_bytes((b.root / DATA).read_bytes()[:500])


@defect("unreadable-data", "missing-rows")
def truncated_table(b) -> None:
    (b.root / DATA).write_bytes((b.root / DATA).read_bytes()[:900])


@defect("episode-table")
def no_episode_table(b) -> None:
    shutil.rmtree(b.root / "meta/episodes")


@defect("task-table")
def no_task_table(b) -> None:
    (b.root / TASKS).unlink()


@defect("task-table")
def no_task_table_and_two_tasks_in_an_episode(b) -> None:
    (b.root / TASKS).unlink()
    b.column(DATA, "task_index", lambda v: [int(i >= 40) for i in range(48)])
    b.column(EPISODES, "tasks", lambda v: [*v[:3], ["Lift it.", *v[3]]])


@defect("task-table")
def a_task_table_cut_short(b) -> None:
    (b.root / TASKS).write_bytes((b.root / TASKS).read_bytes()[:100])


@defect("task-table")
def no_task_table_and_two_texts_for_one_number(b) -> None:
    (b.root / TASKS).unlink()
    b.column(EPISODES, "tasks", lambda v: [["Pick up the cube."], *([["Lift it."]] * 3)])


@defect("missing-data")
def no_data_file(b) -> None:
    (b.root / DATA).unlink()


@defect("missing-rows", "frame-count", "statistics-wrong")
def an_episode_without_rows(b) -> None:
    b.table(DATA, lambda t: t.slice(0, 36))


@defect("lfs-pointers")
def git_lfs_pointers(b) -> None:
    for file in (*b.root.rglob("*.parquet"), *b.root.rglob("*.mp4")):
        file.write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 12345\n")


@defect("byte-order-mark")
def metadata_with_a_byte_order_mark(b) -> None:
    for file in ("meta/info.json", "meta/stats.json"):
        (b.root / file).write_bytes(b"\xef\xbb\xbf" + (b.root / file).read_bytes())


@defect("missing-video")
def one_of_two_videos(b) -> None:
    pictures = read_video(b.video())
    write_video(b.video(), 36, pictures.__getitem__)
    for column, values in (("file_index", [0, 0, 0, 1]), ("from_timestamp", [0, 1.2, 2.4, 0])):
        b.column(EPISODES, f"videos/{WRIST}/{column}", lambda v, values=values: values)
    b.column(EPISODES, f"videos/{WRIST}/to_timestamp", lambda v: [1.2, 2.4, 3.6, 1.2])


@defect("camera-without-video")
def no_video(b) -> None:
    b.video().unlink()


@defect("camera-without-video")
def a_declared_camera_that_never_recorded(b) -> None:
    b.video().unlink()
    wanted = f"videos/{WRIST}/"
    b.table(EPISODES, lambda t: t.drop_columns([name for name in t.column_names if name.startswith(wanted)]))


@defect("unreadable-video")
def empty_video(b) -> None:
    b.video().write_bytes(b"")


@defect("unreadable-video")
def video_truncated_in_its_header(b) -> None:
    b.video().write_bytes(b.video().read_bytes()[:300])


@defect("video-frames", "undecodable-video")
def video_truncated_in_its_pictures(b) -> None:
    b.video().write_bytes(b.video().read_bytes()[:3000])


# ── counts ────────────────────────────────────────────────────────────────────


@defect("episode-count")
def wrong_number_of_episodes(b) -> None:
    b.info(lambda i: i.update(total_episodes=5))


@defect("frame-count")
def wrong_number_of_frames(b) -> None:
    b.info(lambda i: i.update(total_frames=47))


@defect("episode-length", "episode-boundaries")
def wrong_length(b) -> None:
    b.column(EPISODES, "length", lambda v: [v[0] + 3, *v[1:]])


@defect("unlisted-rows", "episode-count", "unused-frames")
def rows_of_no_listed_episode(b) -> None:
    b.table(EPISODES, lambda t: t.slice(0, 3))


@defect("misplaced-rows")
def rows_in_another_file_than_the_table_says(b) -> None:
    table = pq.read_table(b.root / DATA)
    pq.write_table(table.slice(0, 30), b.root / DATA)
    pq.write_table(table.slice(30), b.root / DATA.replace("000.parquet", "001.parquet"))
    b.column(EPISODES, "data/file_index", lambda v: [0, 0, 0, 1])


@defect("misplaced-rows", "row-order")
def every_second_row_in_a_file_that_the_table_does_not_name(b) -> None:
    table = pq.read_table(b.root / DATA)
    pq.write_table(table.take(np.arange(0, 48, 2)), b.root / DATA)
    pq.write_table(table.take(np.arange(1, 48, 2)), b.root / DATA.replace("000.parquet", "001.parquet"))


@defect("misplaced-rows")
def rows_in_a_file_that_the_table_does_not_name(b) -> None:
    table = pq.read_table(b.root / DATA)
    pq.write_table(table.slice(0, 24), b.root / DATA)
    pq.write_table(table.slice(24), b.root / DATA.replace("000.parquet", "001.parquet"))


@defect("episode-numbers", "missing-rows", "unlisted-rows")
def episodes_numbered_from_one(b) -> None:
    b.column(EPISODES, "episode_index", lambda v: [i + 1 for i in v])


@defect("episode-numbers", "episode-statistics")
def two_episodes_under_each_others_number_in_the_table(b) -> None:
    b.column(EPISODES, "episode_index", lambda v: [v[0], v[2], v[1], v[3]])


@defect("episode-boundaries")
def wrong_boundaries(b) -> None:
    b.column(EPISODES, "dataset_from_index", lambda v: [v[0], v[1] - 1, *v[2:]])


@defect("doubled-rows")
def every_row_twice(b) -> None:
    b.table(DATA, lambda t: t.take(np.repeat(np.arange(t.num_rows), 2)))


@defect("doubled-rows")
def all_rows_twice_one_after_the_other(b) -> None:
    b.table(DATA, lambda t: pa.concat_tables([t, t]))


@defect("doubled-rows")
def a_row_twice_with_other_numbers(b) -> None:
    def append(t: pa.Table) -> pa.Table:
        at = t.schema.get_field_index("action")
        field = t.schema.field(at)
        return pa.concat_tables([t, t.slice(30, 1).set_column(at, field, pa.array([[1.0] * 6], type=field.type))])

    b.table(DATA, append)


@defect("row-order")
def rows_out_of_order(b) -> None:
    b.table(DATA, lambda t: pa.concat_tables([t.slice(12), t.slice(0, 12)]))


@defect("frame-numbers", "timestamps")
def frames_numbered_from_five(b) -> None:
    b.column(DATA, "frame_index", lambda v: [i + 5 if n < 12 else i for n, i in enumerate(v)])


@defect("index-numbers")
def wrong_index(b) -> None:
    b.column(DATA, "index", lambda v: [0] * len(v))


@defect("timestamps")
def clock_times(b) -> None:
    b.column(DATA, "timestamp", lambda v: [t * 1.04 for t in v])


@defect("timestamps")
def a_clock_at_a_third_of_the_rate(b) -> None:
    b.column(DATA, "timestamp", lambda v: [t * 3 for t in v])


@defect("timestamps")
def a_timestamp_that_is_no_number(b) -> None:
    b.column(DATA, "timestamp", lambda v: [float("nan"), *v[1:]])


@defect("frame-gaps", "frame-count", "episode-length", "index-numbers", "statistics-wrong")
def a_lost_frame(b) -> None:
    b.table(DATA, lambda t: pa.concat_tables([t.slice(0, 20), t.slice(21)]))


# ── numbers ───────────────────────────────────────────────────────────────────


def change_vectors(b, key: str, change: Callable) -> None:
    """Change one column of vectors (rows, dims), and set its statistics accordingly."""
    b.column(DATA, key, lambda rows: change(np.array(rows, dtype=np.float32)).tolist())
    values = np.array(pq.read_table(b.root / DATA)[key].to_pylist(), dtype=np.float64)
    moments = {"mean": values.mean(0), "std": values.std(0), "min": values.min(0), "max": values.max(0)}
    moments |= {f"q{n:02d}": np.quantile(values, n / 100, axis=0) for n in (1, 10, 50, 90, 99)}
    b.json("meta/stats.json", lambda s: s[key].update({k: v.tolist() for k, v in moments.items()}))
    episode = np.array(pq.read_table(b.root / DATA)["episode_index"].to_pylist())
    for name, measure in {"mean": np.mean, "std": np.std, "min": np.min, "max": np.max}.items():
        of_episodes = [measure(values[episode == e], axis=0).tolist() for e in np.unique(episode)]
        b.column(EPISODES, f"stats/{key}/{name}", lambda _, found=of_episodes: found)


@defect("dimensions", "joint-names")
def fewer_numbers_than_declared(b) -> None:
    b.info(lambda i: i["features"][STATE].update(shape=[7]))


@defect("joint-names")
def no_names(b) -> None:
    b.info(lambda i: i["features"]["action"].update(names=None))


@defect("not-finite")
def a_state_that_is_no_number(b) -> None:
    b.column(DATA, STATE, lambda v: [[float("nan"), *v[0][1:]], *v[1:]])


@defect("not-finite")
def an_action_that_is_missing(b) -> None:
    b.column(DATA, "action", lambda v: [*v[:-1], [*v[-1][:5], None]])


@defect("constant-dimension")
def a_joint_that_never_moves(b) -> None:
    change_vectors(b, STATE, lambda v: np.where(np.arange(6) == 2, 7.0, v))


@defect("units")
def raw_servo_ticks(b) -> None:
    for key in (STATE, "action"):
        change_vectors(b, key, lambda v: np.round(v * 4096 / 360 + 2048))


@defect("units")
def radians(b) -> None:
    for key in (STATE, "action"):
        change_vectors(b, key, np.deg2rad)


@defect("units", "glitch")
def servo_ticks_with_a_lost_reading(b) -> None:
    def lose(v: np.ndarray) -> np.ndarray:
        v = np.round(v * 4096 / 360 + 2048)
        v[20, 1] = -1
        return v

    for key, change in ((STATE, lose), ("action", lambda v: np.round(v * 4096 / 360 + 2048))):
        change_vectors(b, key, change)


@defect("mixed-units")
def states_in_degrees_and_actions_in_radians(b) -> None:
    change_vectors(b, "action", np.deg2rad)


@defect("mixed-units", "implausible-range", "gripper-range")
def states_in_ticks_and_actions_in_degrees(b) -> None:
    change_vectors(b, STATE, lambda v: np.round(v * 4096 / 360 + 2048))


@defect("implausible-range", "mixed-units")
def impossible_angles(b) -> None:
    change_vectors(b, "action", lambda v: v * 40 + 0.5)


@defect("duplicate-episodes")
def an_episode_twice(b) -> None:
    for key in (STATE, "action"):
        change_vectors(b, key, lambda v: np.concatenate([v[:36], v[12:24]]))


@defect("short-episodes", "frame-count", "episode-length", "clip-length", "unused-frames", "statistics-wrong")
def an_episode_of_one_frame(b) -> None:
    b.table(DATA, lambda t: t.slice(0, 37))


@defect("action-repeats-state")
def actions_are_the_next_states(b) -> None:
    states = np.array(pq.read_table(b.root / DATA)[STATE].to_pylist())
    change_vectors(b, "action", lambda v: np.roll(states, -1, axis=0))


# ── motion ────────────────────────────────────────────────────────────────────


def change_episode(b, episode: int, change: Callable, keys: Sequence[str] = (STATE, "action")) -> None:
    """Change the rows (12, dims) of one episode in these columns."""
    at = slice(12 * episode, 12 * episode + 12)
    for key in keys:
        change_vectors(b, key, lambda v: np.concatenate([v[: at.start], change(v[at].copy()), v[at.stop :]]))


@defect("glitch")
def a_joint_that_jumps_and_returns(b) -> None:
    def jump(v: np.ndarray) -> np.ndarray:
        v[6, 0] -= 250
        return v

    change_episode(b, 1, jump, [STATE])


@defect("glitch")
def an_action_that_jumps_and_returns(b) -> None:
    def jump(v: np.ndarray) -> np.ndarray:
        v[6, 2] += 150
        return v

    change_episode(b, 1, jump, ["action"])


@defect("zero-rows")
def a_lost_reading(b) -> None:
    def lose(v: np.ndarray) -> np.ndarray:
        v[5] = 0
        return v

    change_episode(b, 2, lose, [STATE])


@defect("joint-stands-still")
def a_servo_that_is_off(b) -> None:
    change_episode(b, 1, lambda v: np.where(np.arange(6) == 2, v[0], v), [STATE])


@defect("idle-episode")
def an_episode_without_motion(b) -> None:
    change_episode(b, 3, lambda v: np.repeat(v[:1], 12, axis=0))


@defect("idle-ends")
def an_episode_that_hardly_begins(b) -> None:
    change_episode(b, 2, lambda v: np.concatenate([v[:3], np.repeat(v[2:3], 9, axis=0)]))


@defect("action-lag")
def actions_that_follow_the_states(b) -> None:
    for episode in range(4):
        states = np.array(pq.read_table(b.root / DATA)[STATE].to_pylist())[12 * episode :][:12]
        change_episode(b, episode, lambda v, states=states: np.concatenate([states[[0, 0]], states[:-2]]), ["action"])


@defect("delta-actions")
def actions_that_are_differences(b) -> None:
    states = np.array(pq.read_table(b.root / DATA)[STATE].to_pylist())
    change_vectors(b, "action", lambda v: v - states)


@defect("delta-actions")
def an_episode_whose_actions_are_differences(b) -> None:
    states = np.array(pq.read_table(b.root / DATA)[STATE].to_pylist())[24:36]
    steps = np.diff(states, axis=0, append=states[-1:]).astype(np.float32)
    change_episode(b, 2, lambda _: steps, ["action"])


@defect("clipped-actions")
def actions_cut_off_at_a_limit(b) -> None:
    change_vectors(b, "action", lambda v: np.where(np.arange(6) < 2, np.clip(v, -15, 15), v))


@defect("gripper-range")
def a_gripper_of_another_calibration(b) -> None:
    for key in (STATE, "action"):
        change_vectors(b, key, lambda v: np.where(np.arange(6) == 5, 3 * v - 100, v))


@defect("near-duplicates")
def an_episode_replayed(b) -> None:
    noise = np.random.default_rng(3).normal(0, 0.1, (12, 6)).astype(np.float32)
    for key in (STATE, "action"):
        change_vectors(b, key, lambda v: np.concatenate([v[:36], v[12:24] + noise]))


@defect("near-duplicates")
def an_episode_that_is_the_rest_of_another_one(b) -> None:
    """Episode 3 is episode 1 without its beginning, resampled to as many frames."""
    places = np.linspace(3, 11, 12)
    for key in (STATE, "action"):
        own = np.array(pq.read_table(b.root / DATA)[key].to_pylist())[12:24]
        rest = np.stack([np.interp(places, range(12), column) for column in own.T], axis=1).astype(np.float32)
        change_episode(b, 3, lambda _, rest=rest: rest, [key])


@defect("no-success")
def no_demonstration_succeeds(b) -> None:
    b.info(lambda i: i["features"].update({"next.success": {"dtype": "bool", "shape": [1], "names": None}}))
    b.table(DATA, lambda t: t.append_column("next.success", pa.array([False] * t.num_rows)))


@defect("single-take")
def a_whole_recording_in_one_episode(b) -> None:
    rows = 1260
    for camera in ("wrist", "overhead"):
        change_pictures(b, lambda p: [p[i % 48] for i in range(rows)], camera)

    def lengthen(t: pa.Table) -> pa.Table:
        t = t.take(np.arange(rows) % 48)
        numbers = {"episode_index": [0] * rows, "frame_index": range(rows), "index": range(rows)}
        columns = {**numbers, "timestamp": np.arange(rows) / 10}
        for name, values in columns.items():
            field = t.schema.field(name)
            t = t.set_column(t.schema.get_field_index(name), field, pa.array(values, type=field.type))
        return t

    b.table(DATA, lengthen)
    b.table(EPISODES, lambda t: t.slice(0, 1))
    for column in ("length", "dataset_to_index"):
        b.column(EPISODES, column, lambda v: [rows])
    for camera in ("wrist", "overhead"):
        b.column(EPISODES, f"videos/observation.images.{camera}/to_timestamp", lambda v: [rows / 10])
    b.info(lambda i: i.update(total_episodes=1, total_frames=rows))
    for key in (STATE, "action"):
        change_vectors(b, key, lambda v: v)
        b.json("meta/stats.json", lambda s, key=key: s[key].update(count=[rows]))


@defect("statistics-missing")
def no_statistics(b) -> None:
    (b.root / "meta/stats.json").unlink()


@defect("statistics-missing")
def no_statistics_of_the_action(b) -> None:
    b.json("meta/stats.json", lambda s: s.pop("action"))


@defect("statistics-wrong")
def statistics_of_something_else(b) -> None:
    b.json("meta/stats.json", lambda s: s[STATE]["mean"].__setitem__(3, 99.0))


@defect("statistics-wrong")
def statistics_of_twice_as_many_frames(b) -> None:
    b.json("meta/stats.json", lambda s: s[STATE].update(count=[96]))


@defect("episode-statistics")
def statistics_of_two_episodes_exchanged(b) -> None:
    b.column(EPISODES, "stats/action/mean", lambda v: [v[1], v[0], *v[2:]])


@defect("statistics-order")
def quantiles_in_the_wrong_order(b) -> None:
    b.json("meta/stats.json", lambda s: s["action"].update(q01=s["action"]["q99"], q99=s["action"]["q01"]))


@defect("statistics-unknown")
def statistics_of_a_camera_that_is_not_there(b) -> None:
    b.json("meta/stats.json", lambda s: s.update({"observation.images.top": s[WRIST]}))


# ── cameras ───────────────────────────────────────────────────────────────────


@defect("no-camera", "statistics-unknown", "orphan-files")
def no_camera(b) -> None:
    b.info(lambda i: [i["features"].pop(k) for k in (WRIST, "observation.images.overhead")])


@defect("camera-keys", "statistics-unknown", "statistics-missing")
def a_camera_under_a_bare_name(b) -> None:
    b.info(lambda i: i["features"].update(wrist=i["features"].pop(WRIST)))
    (b.root / f"videos/{WRIST}").rename(b.root / "videos/wrist")
    b.table(
        EPISODES, lambda t: t.rename_columns([c.replace(f"videos/{WRIST}/", "videos/wrist/") for c in t.column_names])
    )


@defect("picture-shape")
def channels_first(b) -> None:
    b.info(lambda i: i["features"][WRIST].update(shape=[3, 64, 64]))


@defect("picture-shape")
def another_size_than_declared(b) -> None:
    b.info(lambda i: i["features"][WRIST].update(shape=[480, 640, 3]))


def read_video(path) -> list[np.ndarray]:
    """Return the pictures (H, W, 3) of a video."""
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def write_video(
    path,
    frames: int,
    picture: Callable = lambda i: np.full((64, 64, 3), 5 * i, np.uint8),
    fps: Fraction | int = 10,
    side: int = 64,
    seconds: Sequence[float] | None = None,
) -> None:
    """Write a video of `picture(0)` to `picture(frames - 1)`, at `seconds` or else at a constant rate."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.width = stream.height = side
        stream.pix_fmt = "yuv420p"
        if seconds is not None:
            stream.codec_context.time_base = Fraction(1, 90_000)
        for i in range(frames):
            frame = av.VideoFrame.from_ndarray(picture(i), format="rgb24")
            if seconds is not None:
                frame.pts, frame.time_base = round(seconds[i] * 90_000), Fraction(1, 90_000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


@defect("video-size")
def a_video_of_another_size(b) -> None:
    write_video(b.video(), 36)
    write_video(b.video().with_name("file-001.mp4"), 12, lambda i: np.full((32, 32, 3), 9 * i, np.uint8), side=32)
    b.column(EPISODES, f"videos/{WRIST}/file_index", lambda v: [*v[:-1], 1])
    b.column(EPISODES, f"videos/{WRIST}/from_timestamp", lambda v: [*v[:-1], 0.0])
    b.column(EPISODES, f"videos/{WRIST}/to_timestamp", lambda v: [*v[:-1], 1.2])


@defect("video-frames")
def a_video_that_ends_too_early(b) -> None:
    write_video(b.video(), 45)


@defect("video-frames", "video-rate")
def a_video_of_another_rate(b) -> None:
    write_video(b.video(), 48, fps=11)


@defect("frame-rate")
def another_rate_than_that_of_the_videos(b) -> None:
    b.info(lambda i: i.update(fps=9999))


@defect("video-frames", "unused-frames")
def two_videos_that_may_be_under_each_others_name(b) -> None:
    """Three files hold 24, 12 and 12 frames, the first two under each other's name: the second may be the third."""
    pictures, file = read_video(b.video()), f"videos/{WRIST}"
    for name, part in (("000", pictures[24:36]), ("001", pictures[:24]), ("002", pictures[36:])):
        write_video(b.video().with_name(f"file-{name}.mp4"), len(part), part.__getitem__)
    b.column(EPISODES, f"{file}/file_index", lambda v: [0, 0, 1, 2])
    b.column(EPISODES, f"{file}/from_timestamp", lambda v: [0.0, 1.2, 0.0, 0.0])
    b.column(EPISODES, f"{file}/to_timestamp", lambda v: [1.2, 2.4, 1.2, 1.2])


@defect("video-frames")
def a_video_that_lost_frames_in_the_middle(b) -> None:
    pictures = read_video(b.video())
    write_video(b.video(), 46, lambda i: pictures[i if i < 20 else i + 2])


@defect("video-times")
def a_video_with_uneven_times(b) -> None:
    pictures, jitter = read_video(b.video()), np.random.default_rng(1).uniform(0, 0.06, 48)
    write_video(b.video(), 48, pictures.__getitem__, seconds=np.arange(48) / 10 + jitter)


@defect("clip-places")
def offsets_that_count_on_from_another_file(b) -> None:
    for edge in ("from", "to"):
        b.column(EPISODES, f"videos/{WRIST}/{edge}_timestamp", lambda v: [s + 4.8 for s in v])


@defect("unused-frames")
def a_video_that_goes_on(b) -> None:
    write_video(b.video(), 50)


@defect("dark-camera")
def a_covered_camera(b) -> None:
    write_video(b.video(), 48, lambda i: np.zeros((64, 64, 3), np.uint8))


@defect("frozen-camera")
def a_camera_that_hangs(b) -> None:
    write_video(b.video(), 48, lambda i: np.full((64, 64, 3), 90, np.uint8))


def change_pictures(b, change: Callable, camera: str = "wrist") -> None:
    """Change the 48 pictures (H, W, 3) of a camera; 12 of them belong to each episode."""
    pictures = change(read_video(b.video(camera)))
    write_video(b.video(camera), len(pictures), pictures.__getitem__)


@defect("dark-pictures")
def a_camera_covered_in_one_episode(b) -> None:
    change_pictures(b, lambda p: [*p[:24], *[np.zeros_like(p[0])] * 12, *p[36:]])


@defect("frozen-pictures")
def a_camera_that_hangs_in_one_episode(b) -> None:
    change_pictures(b, lambda p: [*p[:12], *[p[12]] * 12, *p[24:]])


@defect("blurred-pictures")
def a_camera_out_of_focus_in_one_episode(b) -> None:
    def blur(picture: np.ndarray) -> np.ndarray:
        return np.asarray(Image.fromarray(picture).filter(ImageFilter.GaussianBlur(3)))

    change_pictures(b, lambda p: [*p[:36], *map(blur, p[36:])])


@defect("same-pictures")
def one_device_opened_twice(b) -> None:
    shutil.copy(b.video("overhead"), b.video("wrist"))


@defect("swapped-cameras")
def cameras_plugged_in_the_other_way_round(b) -> None:
    rows, columns = np.indices((64, 64), dtype=np.uint8)
    falling, rising = rows + columns, 63 - rows + columns
    for name, usual, other in (("wrist", falling, rising), ("overhead", rising, falling)):
        views = [(other if 12 <= i < 24 else usual) + np.uint8(i) for i in range(48)]
        pictures = [np.repeat(v[:, :, None], 3, axis=2) for v in views]
        change_pictures(b, lambda _, pictures=pictures: pictures, name)


@defect("undecodable-video")
def a_video_with_a_hole(b) -> None:
    bytes_ = bytearray(b.video().read_bytes())
    at = bytes_.find(b"mdat") + 3000
    bytes_[at : at + 4000] = b"\xff" * 4000
    b.video().write_bytes(bytes_)


@defect("undecodable-picture")
def a_stored_image_that_is_broken(b) -> None:
    images = []
    for i in range(47):
        content = io.BytesIO()
        Image.fromarray(np.full((64, 64, 3), 90 + i, np.uint8)).save(content, "PNG")
        images.append({"bytes": content.getvalue(), "path": None})
    b.info(lambda i: i["features"][WRIST].update(dtype="image"))
    b.table(DATA, lambda t: t.append_column(WRIST, pa.array([*images, {"bytes": b"broken", "path": None}])))
    shutil.rmtree(b.root / f"videos/{WRIST}")


@defect("clips-overlap")
def two_episodes_in_the_same_frames(b) -> None:
    for edge in ("from", "to"):
        b.column(EPISODES, f"videos/{WRIST}/{edge}_timestamp", lambda v: [v[0], v[0], *v[2:]])


@defect("clip-length")
def a_clip_of_another_duration(b) -> None:
    b.column(EPISODES, f"videos/{WRIST}/to_timestamp", lambda v: [v[0] + 0.4, *v[1:]])


# ── tasks ─────────────────────────────────────────────────────────────────────


@defect("task-text", "task-lists")
def no_task_text(b) -> None:
    b.column(TASKS, "task", lambda v: ["  "])


@defect("task-lists")
def another_task_in_the_episode_table_than_in_the_rows(b) -> None:
    b.column(EPISODES, "tasks", lambda v: [*v[:3], ["Lift it."]])


@defect("task-index")
def task_texts_in_a_plain_column(b) -> None:
    b.table(TASKS, lambda t: t.replace_schema_metadata(None))


@defect("task-length")
def a_long_task_text(b) -> None:
    b.column(TASKS, "task", lambda v: ["Pick up the cube. " * 9])
    b.column(EPISODES, "tasks", lambda v: [["Pick up the cube. " * 9]] * 4)


@defect("task-numbers", "task-unknown")
def tasks_numbered_from_one(b) -> None:
    b.column(TASKS, "task_index", lambda v: [1])


@defect("task-unknown")
def rows_of_a_task_that_is_not_there(b) -> None:
    b.column(DATA, "task_index", lambda v: [*v[:-1], 3])

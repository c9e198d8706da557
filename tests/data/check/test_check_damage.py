"""Deliberate damage gives findings and never a crash, and no file outside the folder is read."""

import ctypes
import json
import os
import socket
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from stale_disk import away_once

from zk0.data.check import check_dataset
from zk0.errors import DatasetError, may_pass
from zk0.records import DatasetReport

DATA = "data/chunk-000/file-000.parquet"
EPISODES = "meta/episodes/chunk-000/file-000.parquet"
FILES = [
    DATA,
    EPISODES,
    "meta/info.json",
    "meta/stats.json",
    "meta/tasks.parquet",
    "videos/observation.images.wrist/chunk-000/file-000.mp4",
]


def check(root: Path) -> DatasetReport:
    report = check_dataset(root, dataset="damaged")
    assert DatasetReport.model_validate_json(report.model_dump_json()) == report
    return report


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("keep", [0, 1, 4, 0.2, 0.5, 0.9, 0.999])
def test_truncated_anywhere(copy, file, keep) -> None:
    whole = (copy / file).read_bytes()
    (copy / file).write_bytes(whole[: keep if isinstance(keep, int) else int(len(whole) * keep)])
    assert check(copy).errors


@pytest.mark.parametrize("file", FILES)
def test_a_folder_where_a_file_belongs(copy, file) -> None:
    (copy / file).unlink()
    (copy / file).mkdir()
    assert check(copy).errors


@pytest.mark.parametrize("file", FILES)
def test_random_bytes(copy, file) -> None:
    (copy / file).write_bytes(np.random.default_rng(0).bytes(20_000))
    assert check(copy).errors


@pytest.mark.parametrize("file", [f for f in FILES if not f.endswith("json")])
@pytest.mark.parametrize("seed", range(6))
def test_flipped_bytes_never_crash(copy, file, seed) -> None:
    rng = np.random.default_rng(seed)
    damaged = np.frombuffer((copy / file).read_bytes(), np.uint8).copy()
    at = rng.integers(0, len(damaged), 30)
    damaged[at] ^= rng.integers(1, 256, len(at), dtype=np.uint8)
    (copy / file).write_bytes(damaged.tobytes())
    check(copy)


def test_a_video_of_no_known_codec(breaker) -> None:
    video = breaker.video()
    video.write_bytes(video.read_bytes().replace(b"avc1", b"zzzz"))
    assert check(breaker.root).errors


def test_column_names_that_are_not_text(copy) -> None:
    whole = (copy / DATA).read_bytes()
    (copy / DATA).write_bytes(whole.replace(b"observation.state", b"observatio\xff\xfestate"))
    assert check(copy).errors


BAD_JSON = [
    "",
    "{",
    "null",
    "[]",
    '"text"',
    "12",
    "[" * 100_000,
    '{"codebase_version": 3}',
    '{"codebase_version": "v3.0", "fps": 1e999, "features": {}}',
    '{"codebase_version": "v3.0", "fps": -1, "features": {}}',
    '{"codebase_version": "v3.0", "fps": 10, "features": []}',
    '{"codebase_version": "\\ud800", "fps": 10, "features": {}}',
    '{"codebase_version": "v3.0", "fps": 10, "features": {"a": {"dtype": "float32", "shape": [' + "9" * 5000 + "]}}}",
]


@pytest.mark.parametrize("text", BAD_JSON, ids=range(len(BAD_JSON)))
@pytest.mark.parametrize("file", ["meta/info.json", "meta/stats.json"])
def test_wrong_json(copy, file, text) -> None:
    (copy / file).write_text(text)
    assert check(copy).errors


@pytest.mark.parametrize(
    "change",
    [
        lambda i: i.update(data_path="../../{chunk_index}/{file_index}.parquet"),
        lambda i: i.update(data_path="/etc/passwd"),
        lambda i: i.update(data_path="{chunk_index:0999999999d}"),
        lambda i: i.update(data_path="{chunk_index.__class__}"),
        lambda i: i.update(data_path="{chunk_index"),
        lambda i: i.update(data_path="{unknown}"),
        lambda i: i.update(data_path=None, video_path=None),
        lambda i: i.update(video_path="{video_key}/../../../x.mp4"),
        lambda i: i["features"].update({"../../secret": i["features"]["observation.images.wrist"]}),
        lambda i: i["features"]["action"].update(shape=[-1]),
        lambda i: i["features"]["action"].update(shape=[10**12]),
        lambda i: i["features"]["action"].update(dtype="video"),
        lambda i: i.update(total_frames=-5, total_episodes="many"),
    ],
)
def test_wrong_metadata(breaker, change: Callable) -> None:
    breaker.info(change)
    assert check(breaker.root).errors


def opened(path: Path, action: Callable[[], object]) -> bool:
    """Whether anything in this process, library code included, opens the file meanwhile (inotify)."""
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = libc.inotify_init1(os.O_NONBLOCK)
    try:
        assert libc.inotify_add_watch(descriptor, os.fsencode(path), 0x1 | 0x20) > 0  # IN_ACCESS | IN_OPEN
        action()
        try:
            return bool(os.read(descriptor, 4096))
        except BlockingIOError:
            return False
    finally:
        os.close(descriptor)


def test_nothing_outside_the_folder_is_read_or_written(copy, breaker) -> None:
    secret = copy.parent / "secret.parquet"
    (copy / DATA).rename(secret)
    (copy / DATA).symlink_to("../../../secret.parquet")
    (copy / "data" / "more").symlink_to(copy.parent)
    (copy / "data" / "chunk-001").symlink_to(copy.parent)
    (copy / "loop").symlink_to(copy / "loop")
    before = sorted(p.name for p in copy.parent.iterdir()), secret.stat().st_mtime_ns
    assert not opened(secret, lambda: check(copy))
    breaker.info(lambda i: i.update(data_path="../secret.parquet"))
    report = None

    def run() -> None:
        nonlocal report
        report = check(copy)

    assert not opened(secret, run)
    assert report is not None
    assert {"outside-folder", "episode-table"} <= {f.rule for f in report.findings}
    assert report.frames is None
    assert (sorted(p.name for p in copy.parent.iterdir()), secret.stat().st_mtime_ns) == before
    assert opened(secret, lambda: pq.ParquetFile(secret).close())  # inotify does report such a read


def test_a_link_inside_the_folder_is_followed(copy) -> None:
    (copy / DATA).rename(copy / "store.bin")
    (copy / DATA).symlink_to(copy / "store.bin")
    assert not check(copy).errors


def test_a_snapshot_of_the_hubs_cache_may_link_to_its_blobs(copy, tmp_path) -> None:
    snapshot = tmp_path / "models--x" / "snapshots" / "abc"
    snapshot.parent.mkdir(parents=True)
    copy.rename(snapshot)
    blob = tmp_path / "models--x" / "blobs" / "1234"
    blob.parent.mkdir()
    (snapshot / DATA).rename(blob)
    (snapshot / DATA).symlink_to("../../../../blobs/1234")
    assert (snapshot / DATA).exists()
    assert not check(snapshot).errors


def test_pipes_and_sockets_are_not_opened(copy) -> None:
    (copy / DATA).unlink()
    os.mkfifo(copy / DATA)
    with socket.socket(socket.AF_UNIX) as server:
        here = Path.cwd()
        os.chdir(copy / "meta")  # a socket's path must be short
        try:
            server.bind("s")
        finally:
            os.chdir(here)
        report = check(copy)
    assert sum(f.rule == "outside-folder" for f in report.findings) == 2


def test_file_names_that_are_not_text(copy) -> None:
    (Path(os.fsdecode(os.fsencode(copy) + b"/data/chunk-000/\xff\xfe.parquet"))).write_bytes(b"x")
    assert "outside-folder" in {f.rule for f in check(copy).findings}


@pytest.mark.parametrize("pattern", [r"/meta/info\.json$", r"/meta/episodes$", r"/data/chunk-000/file-000\.parquet$"])
def test_a_disk_that_is_away_is_no_finding(copy, pattern) -> None:
    """While a file is read, a folder is listed, or the end of a file is searched that was cut off."""
    os.truncate(copy / DATA, 1000)
    with away_once(pattern), pytest.raises(DatasetError, match=r"cannot be read now .*Stale file handle") as caught:
        check(copy)
    assert may_pass(caught.value)
    assert check(copy).errors


def test_a_million_rows(copy) -> None:
    rows = 1_000_000
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(rows * 6, np.float32)), 6)
    numbers = pa.array(np.arange(rows))
    columns = {
        "action": vectors,
        "observation.state": vectors,
        "timestamp": pa.array(np.arange(rows, dtype=np.float32)),
        **dict.fromkeys(("frame_index", "episode_index", "index", "task_index"), numbers),
    }
    pq.write_table(pa.table(columns), copy / DATA)
    report = check(copy)
    assert {"frame-count", "unlisted-rows", "frame-numbers"} <= {f.rule for f in report.findings}
    assert len(report.model_dump_json()) < 20_000


@pytest.mark.parametrize(
    "column",
    [
        pa.array(["text"] * 48),
        pa.array([None] * 48, pa.float32()),
        pa.array([[1.0]] * 47 + [[1.0, 2.0]]),
        pa.array([[1.0]] * 47 + [None]),
        pa.array([[[1.0]]] * 48),
        pa.array([b"\xff"] * 48),
        pa.array([True] * 48),
        pa.array([[]] * 48, pa.list_(pa.float32())),
    ],
    ids=range(8),
)
@pytest.mark.parametrize("name", ["action", "timestamp", "episode_index", "task_index"])
def test_columns_of_other_kinds(breaker, name, column) -> None:
    breaker.table(DATA, lambda t: t.set_column(t.schema.get_field_index(name), name, column))
    assert check(breaker.root).errors


@pytest.mark.parametrize("value", [None, -1, 10**18, float("nan"), "x"])
@pytest.mark.parametrize(
    "name", ["length", "episode_index", "data/file_index", "videos/observation.images.wrist/from_timestamp"]
)
def test_episode_tables_of_other_kinds(breaker, name, value) -> None:
    breaker.table(EPISODES, lambda t: t.set_column(t.schema.get_field_index(name), name, pa.array([value] * 4)))
    assert check(breaker.root).errors


@pytest.mark.parametrize("file", ["meta/tasks.parquet", EPISODES])
def test_text_that_is_not_utf8(breaker, file) -> None:
    def spoil(table: pa.Table) -> pa.Table:
        bad = pa.array([b"\xff\xfe"] * table.num_rows).view(pa.string())
        return pa.table({**{c: table[c] for c in table.column_names}, "task": bad})

    breaker.table(file, spoil)
    check(breaker.root)


def test_wrong_v2_tables(breaker) -> None:
    breaker.info(lambda i: i.update(codebase_version="v2.1", data_path="data/{episode_index}.parquet"))
    for lines in ("[]", "3", '{"episode_index": 1}', '{"episode_index": -1, "length": 4}', "{"):
        (breaker.root / "meta/episodes.jsonl").write_text(lines)
        (breaker.root / "meta/tasks.jsonl").write_text(lines)
        assert {"episode-table", "task-table"} <= {f.rule for f in check(breaker.root).findings}


def test_an_empty_folder_and_none(tmp_path) -> None:
    (tmp_path / "empty").mkdir()
    assert [f.rule for f in check(tmp_path / "empty").findings] == ["info"]
    with pytest.raises(DatasetError, match="no such folder"):
        check(tmp_path / "nothing")
    (tmp_path / "file").write_text(json.dumps({}))
    with pytest.raises(DatasetError, match="no such folder"):
        check(tmp_path / "file")

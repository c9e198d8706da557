"""Recordings that were killed before LeRobot closed its tables."""

import re
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
from defects import DATA, EPISODES, WRIST, read_video, write_video
from picture_alignment import misplaced_pictures

from zk0.data.check import check_dataset
from zk0.data.repair.repair_dataset import repair_dataset
from zk0.errors import DatasetError

KEPT = ("episode_index", "length", "tasks", "dataset_from_index", "dataset_to_index")
CLIPS = tuple(f"videos/{WRIST}/{name}" for name in ("file_index", "from_timestamp", "to_timestamp"))


def cut(path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


@pytest.mark.parametrize("size", [4, 600, -600, None], ids=["begun", "first pages", "no footer", "no file"])
def test_the_episode_table_is_built_again_from_rows_and_videos(breaker, size) -> None:
    table = pq.read_table(breaker.root / EPISODES).to_pylist()
    shutil.rmtree(breaker.root / "meta/episodes") if size is None else cut(breaker.root / EPISODES, size)
    report = check_dataset(breaker.root, dataset="x")
    assert [(f.rule, f.repair) for f in report.findings] == [("episode-table", "rebuild-episodes")]
    assert size is None or "interrupted" in report.findings[0].found
    target = breaker.root.with_name("repaired")
    done, after = repair_dataset(breaker.root, target, dataset="x")
    assert (done.repairs, done.dropped, after.findings) == (("rebuild-episodes",), (), ())
    assert misplaced_pictures(target) == {}
    rebuilt = pq.read_table(target / EPISODES).to_pylist()
    for old, new in zip(table, rebuilt, strict=True):
        assert {k: new[k] for k in KEPT} == {k: old[k] for k in KEPT}
        assert [new[k] for k in CLIPS] == pytest.approx([old[k] for k in CLIPS])


def test_clips_in_several_files_find_their_places(breaker) -> None:
    pictures = read_video(breaker.video())
    for part, name in ((slice(0, 12), "file-000.mp4"), (slice(12, 48), "file-001.mp4")):
        chosen = pictures[part]
        write_video(breaker.video().with_name(name), len(chosen), chosen.__getitem__)
    cut(breaker.root / EPISODES, -600)
    target = breaker.root.with_name("repaired")
    repair_dataset(breaker.root, target, dataset="x")
    assert misplaced_pictures(target) == {}
    assert [r[f"videos/{WRIST}/file_index"] for r in pq.read_table(target / EPISODES).to_pylist()] == [0, 1, 1, 1]


def longer(b) -> None:
    """A take that was discarded is still in the video, nobody knows where."""
    pictures = read_video(b.video())
    write_video(b.video(), 49, lambda i: pictures[min(i, 47)])


def uneven_files(b) -> None:
    """A video ends in the middle of an episode."""
    pictures = read_video(b.video())
    for part, name in ((pictures[:20], "file-000.mp4"), (pictures[20:], "file-001.mp4")):
        write_video(b.video().with_name(name), len(part), part.__getitem__)


def gap_in_numbers(b) -> None:
    """The video of the first episodes has a later number than that of the others."""
    pictures = read_video(b.video())
    for part, name in ((pictures[24:], "file-001.mp4"), (pictures[:24], "file-007.mp4")):
        write_video(b.video().with_name(name), len(part), part.__getitem__)
    b.video().unlink()


def gap_in_rows(b) -> None:
    b.table(DATA, lambda t: t.take(np.delete(np.arange(48), 20)))


WHY = {
    longer: "49 frames for 48 rows",
    uneven_files: "file-000.mp4 ends in the middle of an episode",
    gap_in_numbers: "file-007.mp4 has not the next number of .*, so nothing tells the order",
    gap_in_rows: "the rows of episode 1 in .* are not whole",
}


@pytest.mark.parametrize("doubt", WHY)
def test_a_table_that_is_not_certain_is_not_built(breaker, doubt) -> None:
    doubt(breaker)
    cut(breaker.root / EPISODES, -600)
    findings = {f.rule: f for f in check_dataset(breaker.root, dataset="x").findings}
    assert findings["episode-table"].repair is None
    assert re.search(f"cannot be built again: .*({WHY[doubt]}).*Copy it from", findings["episode-table"].expected)
    with pytest.raises(DatasetError, match="cannot be repaired: episode-table"):
        repair_dataset(breaker.root, breaker.root.with_name("repaired"), dataset="x")


def test_rows_without_an_end_say_that_the_recording_was_interrupted(breaker) -> None:
    cut(breaker.root / DATA, -600)
    finding = next(f for f in check_dataset(breaker.root, dataset="x").findings if f.rule == "unreadable-data")
    assert "interrupted" in finding.found


def test_both_tables_without_an_end_are_told(breaker) -> None:
    cut(breaker.root / DATA, -600)
    cut(breaker.root / EPISODES, -600)
    findings = check_dataset(breaker.root, dataset="x").findings
    assert {f.rule: f.repair for f in findings} == {"episode-table": None, "unreadable-data": None}

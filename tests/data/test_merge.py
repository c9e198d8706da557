"""Datasets of one robot become one dataset that passes the check, or every reason against it is given at once."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from defects import change_vectors
from healthy_dataset import Breaker
from picture_alignment import misplaced_pictures
from typer.testing import CliRunner

from flows.cli.main import zk0_app
from zk0.data.check import check_dataset
from zk0.data.frame_table import read_episodes
from zk0.data.merge import merge_datasets
from zk0.errors import DatasetError
from zk0.records import ACTION, STATE

MARK = "intervention"


@pytest.fixture
def corrections(breaker: Breaker) -> Path:
    """Other episodes than the healthy ones, in the form that LeRobot's DAgger mode writes on the simulated arm."""
    breaker.info(lambda info: info.update(robot_type="so101_simulated"))
    breaker.info(lambda info: info["features"].update({MARK: {"dtype": "bool", "shape": [1], "names": None}}))
    for key in (STATE, ACTION):
        change_vectors(breaker, key, lambda values: values[:, [1, 2, 3, 4, 0, 5]])
    breaker.column(breaker.episodes, "tasks", lambda rows: [["Pick up the red cube."] for _ in rows])
    tasks = pq.read_table(breaker.root / "meta/tasks.parquet").to_pandas()
    tasks.index = tasks.index.str.replace("the cube", "the red cube")
    tasks.to_parquet(breaker.root / "meta/tasks.parquet")
    breaker.table(breaker.data, lambda t: t.append_column(MARK, pa.array([True] * len(t))))
    ones = pa.array([[1.0]] * 4)
    for moment in ("mean", "std", "min", "max"):
        breaker.table(breaker.episodes, lambda t, name=moment: t.append_column(f"stats/{MARK}/{name}", ones))
    breaker.json("meta/stats.json", lambda s: s.update({MARK: {"mean": [1.0], "std": [0.0], "min": [1], "max": [1]}}))
    assert check_dataset(breaker.root, dataset="corrections").findings == ()
    return breaker.root


def test_corrections_of_another_robot_type_join_the_recordings(
    healthy: Path, corrections: Path, tmp_path: Path
) -> None:
    target = tmp_path / "merged"
    command = ["data", "merge", str(healthy), str(corrections), "--output", str(target)]
    done = CliRunner().invoke(zk0_app, [*command, "--robot-type", "so101_follower"])
    assert done.exit_code == 0, done.output
    assert f"left out  {MARK}, which only local:{corrections} has in this form" in done.stdout
    assert f"merged    {target} (8 episodes, 96 frames), which passes the check" in done.stdout
    report = check_dataset(target, dataset="merged")
    assert (report.findings, report.robot_type) == ((), "so101_follower")
    assert report.tasks == ("Pick up the cube.", "Pick up the red cube.")
    assert misplaced_pictures(target) == {}
    merged = read_episodes(target, range(8))
    for start, source in ((0, healthy), (4, corrections)):
        for number, episode in read_episodes(source, range(4)).items():
            np.testing.assert_array_equal(merged[start + number].state, episode.state)
            np.testing.assert_array_equal(merged[start + number].action, episode.action)


def test_everything_that_does_not_fit_is_named_at_once(healthy: Path, corrections: Path, tmp_path: Path) -> None:
    def rename_joints(info: dict) -> None:
        for key in (STATE, ACTION):
            info["features"][key]["names"][0] = "base.pos"

    Breaker(corrections).info(rename_joints)
    twice = Path(shutil.copytree(corrections, tmp_path / "twice"))
    with pytest.raises(DatasetError) as refused:
        merge_datasets({"a": healthy, "b": corrections, "c": twice}, tmp_path / "merged")
    message = str(refused.value)
    for name in ("b", "c"):
        assert "action: a has action (float32 6: shoulder_pan.pos, " in message
        assert f"{name} has action (float32 6: base.pos, " in message
    assert "robot_type: a has so101_follower, b has so101_simulated, c has so101_simulated; if all are" in message
    assert "give its word with --robot-type" in message
    assert "b and c share 4 episode(s)" in message
    assert not (tmp_path / "merged").exists()


def test_a_camera_that_only_one_dataset_has_is_not_left_out(healthy: Path, copy: Path, tmp_path: Path) -> None:
    Breaker(copy).info(lambda info: info["features"].pop("observation.images.wrist"))
    Breaker(copy).json("meta/stats.json", lambda s: s.pop("observation.images.wrist"))
    shutil.rmtree(copy / "videos/observation.images.wrist")
    with pytest.raises(DatasetError, match=r"cameras: a has .*wrist \(video 64 x 64 x 3\), b has .*overhead"):
        merge_datasets({"a": healthy, "b": copy}, tmp_path / "merged")


def test_every_dataset_passes_the_check_first(healthy: Path, copy: Path, tmp_path: Path) -> None:
    (copy / "meta/stats.json").unlink()
    broken = {"a": copy, "b": Path(shutil.copytree(copy, tmp_path / "other")), "c": healthy}
    with pytest.raises(DatasetError, match=r"a: statistics-missing: .*; b: statistics-missing: .*; zk0 data repair"):
        merge_datasets(broken, tmp_path / "merged")


def test_a_merge_overwrites_nothing_and_needs_two_datasets(healthy: Path, tmp_path: Path) -> None:
    for uris, output, message in (
        ([healthy, healthy], tmp_path / "merged", "found 1 dataset, expected at least two different ones"),
        ([healthy, tmp_path], tmp_path, f"{tmp_path}: exists already"),
    ):
        done = CliRunner().invoke(zk0_app, ["data", "merge", *map(str, uris), "--output", str(output)])
        assert (done.exit_code, message in done.stderr) == (1, True), done.output


def test_the_header_is_that_of_the_first_dataset(healthy: Path, corrections: Path, tmp_path: Path) -> None:
    merge_datasets({"b": corrections, "a": healthy}, tmp_path / "merged", robot_type="so_follower")
    info = json.loads((tmp_path / "merged/meta/info.json").read_text())
    assert info["robot_type"] == "so_follower"
    assert MARK not in info["features"]
    assert (info["total_episodes"], info["total_frames"], info["total_tasks"]) == (8, 96, 2)

"""Datasets of other robots and formats give findings, never a traceback."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from zk0.data.check import check_contract, check_dataset
from zk0.data.frame_table import read_episodes
from zk0.data.preview import read_preview
from zk0.data.repair.repair_dataset import repair_dataset
from zk0.settings.dataset_settings import ContractSettings

DATA = "data/chunk-000/file-000.parquet"
TOP = "observation.images.top"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """A mobile robot: images in parquet, names in a group, a matrix, a flag, a text, a double, no names."""
    from lerobot.datasets import LeRobotDataset

    root = tmp_path_factory.mktemp("data") / "pictures"
    features = {
        "observation.state": {"dtype": "float32", "shape": (3,), "names": {"axes": ["x", "y", "theta"]}},
        "action": {"dtype": "float64", "shape": (2,), "names": None},
        TOP: {"dtype": "image", "shape": (32, 48, 3), "names": ["height", "width", "channels"]},
        "observation.grid": {"dtype": "float32", "shape": (4, 5), "names": None},
        "next.done": {"dtype": "bool", "shape": (1,), "names": None},
        "next.reward": {"dtype": "float32", "shape": (1,), "names": None},
        "note": {"dtype": "string", "shape": (1,), "names": None},
    }
    dataset = LeRobotDataset.create("local/p", 5, features, root=root, robot_type="lekiwi", use_videos=False)
    rng = np.random.default_rng(0)
    for _ in range(3):
        for t in range(6):
            dataset.add_frame(
                {
                    "observation.state": rng.normal(0, 200, 3).astype(np.float32),
                    "action": rng.normal(0, 200, 2),
                    TOP: rng.integers(0, 255, (32, 48, 3), dtype=np.uint8),
                    "observation.grid": rng.normal(size=(4, 5)).astype(np.float32),
                    "next.done": np.array([t == 5]),
                    "next.reward": np.array([0.5 * t], np.float32),
                    "note": "frame",
                    "task": ["Drive to the door.", "Stop."][t == 5],
                }
            )
        dataset.save_episode(parallel_encoding=False)
    dataset.finalize()
    return root


def load(root: Path):
    from lerobot.datasets import LeRobotDataset

    return LeRobotDataset("local/p", root=root)


def broken_copy(root: Path, target: Path, change) -> Path:
    import shutil

    shutil.copytree(root, target)
    pq.write_table(change(pq.read_table(target / DATA)), target / DATA)
    return target


def test_another_robot_is_described_and_refused_by_the_contract(pictures) -> None:
    report = check_dataset(pictures, dataset="x")
    assert {f.rule for f in report.findings} == {"joint-names"}  # the action has none
    assert report.state_names == ("x", "y", "theta")
    assert report.action_names == ("dim_0", "dim_1")
    assert report.cameras == ("top",)
    assert set(report.tasks) == {"Drive to the door.", "Stop."}
    refused = {f.rule for f in check_contract(report, ContractSettings())}
    assert {"contract-dimensions", "contract-cameras"} <= refused


def test_stored_images_are_previewed(pictures) -> None:
    found = read_preview(pictures)
    assert [(p.episode, p.frame, p.camera) for p in found.images] == [
        (e, f, "top") for e in (0, 1, 2) for f in (0, 3, 5)
    ]
    item = load(pictures)[6 + 3]
    assert np.array_equal(found.images[4].pixels, (item[TOP].permute(1, 2, 0) * 255).round().numpy())


def test_an_episode_with_an_undecodable_image_is_dropped(pictures, tmp_path) -> None:
    def spoil(table: pa.Table) -> pa.Table:
        values = table[TOP].to_pylist()
        values[8] = {**values[8], "bytes": values[8]["bytes"][:100]}
        at = table.schema.get_field_index(TOP)
        return table.set_column(at, TOP, pa.array(values, type=table.schema.field(TOP).type))

    root = broken_copy(pictures, tmp_path / "broken", spoil)
    assert "undecodable-picture" not in {f.rule for f in check_dataset(root, dataset="x", quick=True).findings}
    (finding,) = (f for f in check_dataset(root, dataset="x").findings if f.rule == "undecodable-picture")
    assert finding.where == "data (episode 1)"
    assert f"{TOP} in row 8" in finding.found
    done, after = repair_dataset(root, tmp_path / "repaired", dataset="x")
    assert done.dropped == (1,)
    assert after.errors == ()
    original, copied = load(pictures), load(tmp_path / "repaired")
    assert len(copied) == len(copied.hf_dataset) == 12
    for new, old in ((0, 0), (5, 5), (6, 12), (11, 17)):
        a, b = copied[new], original[old]
        assert a.keys() == b.keys()
        for key in a.keys() - {"index", "episode_index", "task", "note"}:
            assert (a[key] == b[key]).all(), key
        assert (a["task"], a["note"]) == (b["task"], b["note"])


def test_every_column_survives_a_repair(pictures, tmp_path) -> None:
    root = broken_copy(pictures, tmp_path / "doubled", lambda t: pa.concat_tables([t, t]))
    _, after = repair_dataset(root, tmp_path / "repaired", dataset="x")
    assert after.errors == ()
    before, copied = pq.read_table(pictures / DATA), pq.read_table(tmp_path / "repaired" / DATA)
    assert set(copied.column_names) == set(before.column_names)
    for name in before.column_names:
        assert copied[name].to_pylist() == before[name].to_pylist(), name
    assert load(tmp_path / "repaired")[17]["next.done"]


def test_a_dataset_in_many_files(pictures, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("zk0.data.repair.write_copy.DATA_FILE_BYTES", 1)
    root = broken_copy(pictures, tmp_path / "doubled", lambda t: pa.concat_tables([t, t]))
    _, after = repair_dataset(root, tmp_path / "many", dataset="x")
    assert len(list((tmp_path / "many/data").rglob("*.parquet"))) == 3
    assert (after.errors, after.frames) == ((), 18)
    whole, parts = read_episodes(pictures, range(3)), read_episodes(tmp_path / "many", range(3))
    assert all(whole[e].action.tobytes() == parts[e].action.tobytes() for e in range(3))
    assert len(load(tmp_path / "many").hf_dataset) == 18


def test_radians_beside_a_gripper_in_percent(breaker, tmp_path) -> None:
    def turn(rows: list) -> list:
        values = np.array(rows)
        values[:, :5] = np.deg2rad(values[:, :5])
        values[:, 5] = np.abs(values[:, 5]) + 20
        return values.astype(np.float32).tolist()

    for key in ("observation.state", "action"):
        breaker.column(DATA, key, turn)
    assert check_dataset(breaker.root, dataset="x").units == "radians"
    stored = read_episodes(breaker.root, range(4))
    repair_dataset(breaker.root, tmp_path / "repaired", dataset="x")
    for e, episode in read_episodes(tmp_path / "repaired", range(4)).items():
        np.testing.assert_allclose(episode.state[:, :5], np.rad2deg(stored[e].state[:, :5]), atol=1e-4)
        assert np.array_equal(episode.state[:, 5], stored[e].state[:, 5])


def test_a_gripper_that_opens_to_100_is_no_sign_of_normalized_joints(breaker) -> None:
    def open_wide(rows: list) -> list:
        values = np.array(rows)
        values[7, 5] = 100.0
        return values.tolist()

    for key in ("observation.state", "action"):
        breaker.column(DATA, key, open_wide)
    assert check_dataset(breaker.root, dataset="x").units is None


def test_the_check_needs_neither_lerobot_nor_torch() -> None:
    modules = "check, check.rule_catalog, episode_digests, preview, repair.repair_dataset, statistics, split, locate"
    imports = "; ".join(f"import zk0.data.{module}" for module in modules.split(", "))
    program = f"import sys; {imports}; print(*{{'lerobot', 'torch', 'datasets'}} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""

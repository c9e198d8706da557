"""Recordings of real and simulated arms, found through ZK0_REAL_DATA."""

import json
import os
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from zk0.data.check import check_contract, check_dataset
from zk0.data.check.rule_catalog import CONTENT_WARNINGS
from zk0.data.episode_digests import episode_digests
from zk0.data.repair.repair_dataset import repair_dataset
from zk0.data.statistics import measure_statistics
from zk0.settings.dataset_settings import ContractSettings

pytestmark = [
    pytest.mark.real_data,
    pytest.mark.skipif("ZK0_REAL_DATA" not in os.environ, reason="ZK0_REAL_DATA names no folder of recordings"),
]


@pytest.mark.parametrize(
    ("name", "episodes", "frames"),
    [
        ("so101-cloth-right", 25, 5541),
        ("nexus-lift-red", 8, 208),
        ("nexus-place-red-blue", 8, 365),
        ("nexus-place-yellow-green", 8, 365),
        ("nexus-stack-red-blue", 8, 348),
    ],
)
def test_good_real_data_pass(real_data, name, episodes, frames) -> None:
    report = check_dataset(real_data / name, dataset=name)
    assert report.errors == ()
    assert (report.episodes, report.frames) == (episodes, frames)
    assert not [f for f in check_contract(report, ContractSettings(cameras=("wrist",))) if f.severity == "error"]


def test_the_warnings_of_a_good_recording(real_data) -> None:
    report = check_dataset(real_data / "so101-cloth-right", dataset="x")
    assert {f.rule for f in report.findings} == {"action-repeats-state", "dark-pictures"}
    assert [f.episodes for f in report.findings if f.rule == "dark-pictures"] == [(0,)]
    assert report.units == "degrees"


HEALTHY = json.loads((Path(__file__).parents[3] / "docs/healthy_recordings.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", HEALTHY)
def test_warnings_are_as_rare_as_the_documentation_says(real_data, name) -> None:
    report = check_dataset(real_data / name, dataset=name)
    for rule in CONTENT_WARNINGS:
        found = [f for f in report.findings if f.rule == rule.id]
        count = sum(len(f.episodes) or report.episodes for f in found)
        assert count <= HEALTHY[name]["warnings"].get(rule.id, 0), found


def test_a_warning_names_at_most_one_of_fifty_healthy_episodes() -> None:
    total = sum(one["episodes"] for one in HEALTHY.values())
    for rule in {r.id for r in CONTENT_WARNINGS} - {"action-repeats-state"}:
        assert sum(one["warnings"].get(rule, 0) for one in HEALTHY.values()) <= total / 50, rule


def test_statistics_equal_those_of_the_recording(real_data) -> None:
    stated = json.loads((real_data / "so101-cloth-right/meta/stats.json").read_text())["observation.state"]
    measured = measure_statistics(real_data / "so101-cloth-right", range(25)).state
    np.testing.assert_allclose(measured.mean, stated["mean"], rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(measured.std, stated["std"], rtol=1e-4, atol=1e-3)


def test_a_recording_without_cameras_gets_findings(real_data) -> None:
    report = check_dataset(real_data / "so101-record-test-novideo", dataset="x")
    assert {f.rule for f in report.errors} == {"no-camera"}
    assert "statistics-unknown" in {f.rule for f in report.findings}
    assert report.units == "normalized"  # the elbow stops at exactly 100


def test_a_humanoid_is_refused_by_its_dimensions(real_data) -> None:
    report = check_dataset(real_data / "g1-bottle", dataset="x")
    assert report.errors == ()
    assert report.robot_type == "Unitree_G1_Inspire"
    refusals = [f for f in check_contract(report, ContractSettings()) if f.rule == "contract-dimensions"]
    assert [f.where for f in refusals] == ["state", "action"]
    assert "26 dimensions (kLeftShoulderPitch" in refusals[0].found


def test_the_same_motions_under_other_colors_are_the_same_episodes(real_data) -> None:
    red, yellow = (episode_digests(real_data / f"nexus-place-{c}", range(8)) for c in ("red-blue", "yellow-green"))
    assert red == yellow
    assert not set(red) & set(episode_digests(real_data / "nexus-lift-red", range(8)))


def test_a_recording_as_found_is_reported_and_repaired(real_data, tmp_path) -> None:
    root = real_data / "asfound-so101-cloth-5ep"
    before = {p: p.stat().st_mtime_ns for p in root.rglob("*")}
    findings = {f.rule: f for f in check_dataset(root, dataset="x").findings}
    assert "1.364 s off (mean rate 18.5" in findings["timestamps"].found
    assert "ticks" in findings["units"].found
    assert "2 files (97 rows)" in findings["orphan-data"].found
    assert findings["missing-columns"].found == "no column index, task_index"
    assert "20 missing files" in findings["missing-data"].found
    assert findings.keys() >= {
        "format-version", "default-features", "undeclared-columns", "column-types", "frame-count", "statistics-wrong",
        "picture-shape", "missing-video",
    }  # fmt: skip
    done, after = repair_dataset(root, tmp_path / "repaired", dataset="x")
    assert {p: p.stat().st_mtime_ns for p in root.rglob("*")} == before
    assert after.errors == ()
    assert (after.episodes, after.frames, len(done.dropped)) == (5, 1360, 20)
    ticks = np.stack(pq.read_table(root / "data/chunk-000/episode_000003.parquet")["action"].to_numpy())
    rows = pq.read_table(tmp_path / "repaired/data/chunk-000/file-000.parquet")
    third = np.stack(rows["action"].to_numpy())[np.asarray(rows["episode_index"]) == 3]
    np.testing.assert_allclose(third, (ticks - 2048) * 360 / 4096, atol=1e-4)
    for copied, original in (("000", "000000"), ("004", "000004")):
        new = tmp_path / f"repaired/videos/observation.images.cam1/chunk-000/file-{copied}.mp4"
        assert (
            new.read_bytes() == (root / f"videos/chunk-000/observation.images.cam1/episode_{original}.mp4").read_bytes()
        )


def test_lerobot_loads_the_repaired_copy(real_data, tmp_path) -> None:
    from lerobot.datasets import LeRobotDataset

    repair_dataset(real_data / "asfound-so101-cloth-5ep", tmp_path / "repaired", dataset="x")
    chunk = {"action": [i / 20 for i in range(10)]}
    data = LeRobotDataset("local/x", root=tmp_path / "repaired", video_backend="pyav", delta_timestamps=chunk)
    assert len(data) == len(data.hf_dataset) == 1360
    for i in (0, 347, 348, 1359):
        item = data[i]
        assert item["action"].shape == (10, 12)
        assert item["observation.images.cam0"].shape == (3, 224, 224)
        assert item["task"] == "bimanual cloth manipulation"
        assert bool(item["action_is_pad"].any()) == (i in (347, 1359))
    part = LeRobotDataset("local/x", root=tmp_path / "repaired", episodes=[1, 3], video_backend="pyav")
    assert len(part) == 280 + 243
    assert part[280]["episode_index"] == 3


@pytest.mark.slow
def test_a_policy_trains_on_the_repaired_copy(real_data, tmp_path) -> None:
    import torch
    from lerobot.datasets import LeRobotDataset
    from torch.utils.data import default_collate

    from zk0.policy.build import build_policy
    from zk0.policy.processors import make_processors
    from zk0.policy.trainable import trainable_parameters
    from zk0.records import PolicyRecipe

    repair_dataset(real_data / "asfound-so101-cloth-5ep", tmp_path / "repaired", dataset="x")
    policy = build_policy(PolicyRecipe(path="tiny", cameras=("cam0", "cam1"), joints=12, seed=1), tmp_path / "cache")
    chunk = {"action": [i / 20 for i in range(policy.config.chunk_size)]}
    data = LeRobotDataset("local/x", root=tmp_path / "repaired", video_backend="pyav", delta_timestamps=chunk)
    prepare, _ = make_processors(policy, measure_statistics(tmp_path / "repaired", range(4)))
    batch = prepare(default_collate([data[i] for i in (3, 400, 700, 1100)]))
    torch.manual_seed(0)
    noise = torch.randn(4, policy.config.chunk_size, policy.config.max_action_dim)
    optimizer = torch.optim.AdamW(trainable_parameters(policy).values(), lr=1e-3)
    losses = []
    for _ in range(15):
        loss, _ = policy.forward(batch, noise=noise, time=torch.full((4,), 0.5))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert np.isfinite(losses).all()
    assert losses[-1] < 0.8 * losses[0], losses

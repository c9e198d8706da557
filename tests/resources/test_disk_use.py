"""Disk space of a session, computed from settings and metadata alone."""

import json
from pathlib import Path
from typing import Any

import pytest
from full_policy_tensors import CONFIG, full_policy_tensors

from zk0.policy.policy_shapes import PolicyShapes, shapes_of_tensors
from zk0.resources.dataset_sizes import DatasetSize, dataset_sizes, each_dataset_once
from zk0.resources.disk_text import disk_line
from zk0.resources.disk_use import disk_use, feature_frames
from zk0.settings.dataset_settings import ClientSettings, EvaluationSetSettings
from zk0.settings.loading import load_session, parse_session
from zk0.settings.session import Session

SO100 = Path(__file__).parents[2] / "deployments/sessions/so100.toml"
EPISODES, FRAMES_PER_EPISODE = 50, 250


@pytest.fixture(scope="module")
def full() -> PolicyShapes:
    return shapes_of_tensors(CONFIG, full_policy_tensors())


def publish(cache: Path, dataset: str, version: str = "v3.0") -> None:
    """Write the metadata of a dataset with two cameras to the folder that it is downloaded to."""
    image = {"dtype": "video", "shape": [480, 640, 3]}
    info = {
        "codebase_version": version, "fps": 30, "robot_type": "so100", "total_episodes": EPISODES,
        "total_frames": EPISODES * FRAMES_PER_EPISODE,
        "features": {"observation.images.a": image, "observation.images.b": image},
    }  # fmt: skip
    file = cache / dataset / "meta" / "info.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps(info))


def so100(cache: Path, version: str = "v3.0", **changes: Any) -> tuple[Session, tuple[DatasetSize, ...]]:
    """Return the session with datasets in folders, and their sizes as if they lay on the Hub."""
    session = load_session(SO100, {"cache_dir": str(cache), "output_dir": str(cache / "out"), **changes})
    names = [*session.clients, *session.evaluation.datasets]
    for one in names:
        publish(cache, one.dataset.removeprefix("hf:"), version)
    evaluation = session.evaluation.model_copy(
        update={"datasets": tuple(in_folder(one, cache) for one in session.evaluation.datasets)}
    )
    clients = tuple(in_folder(one, cache) for one in session.clients)
    session = session.model_copy(update={"clients": clients, "evaluation": evaluation})
    sizes = dataset_sizes(session)
    return session, tuple(size.model_copy(update={"source": "hub", "is_here": False}) for size in sizes)


def in_folder[T: (ClientSettings, EvaluationSetSettings)](settings: T, cache: Path) -> T:
    return settings.model_copy(update={"dataset": f"local:{cache}/{settings.dataset.removeprefix('hf:')}"})


def parts(session: Session, sizes: tuple[DatasetSize, ...], shapes: PolicyShapes) -> dict[str, tuple[int, int]]:
    return {part.purpose: (part.peak_bytes, part.kept_bytes) for part in disk_use(session, sizes, shapes).parts}


def test_features_are_those_of_the_frames_that_are_used(tmp_path: Path, full: PolicyShapes) -> None:
    session, sizes = so100(tmp_path)
    trained = 4 * 49 * FRAMES_PER_EPISODE
    evaluated = (4 + 3 * EPISODES) * 63  # every fourth frame of 250
    assert feature_frames(session, sizes) == trained + evaluated
    per_frame = 2 * 64 * 960 * 2
    found = parts(session, sizes, full)["features"][0]
    assert 0 <= found - (trained + evaluated) * per_frame < 1_000_000
    limited, _ = so100(tmp_path / "limited", **{"training.feature_cache_gb": 5.0})
    assert parts(limited, sizes, full)["features"] == (5_000_000_000, 5_000_000_000)
    off, _ = so100(tmp_path / "off", **{"training.features": "off"})
    assert "features" not in parts(off, sizes, full)


def test_weights_that_are_kept(tmp_path: Path, full: PolicyShapes) -> None:
    one = 399_523_968
    session, sizes = so100(tmp_path)
    peak, kept = parts(session, sizes, full)["global weights"]
    assert kept == pytest.approx(3 * one, rel=1e-3)  # the first, the best and the last round
    assert peak == pytest.approx(5 * one, rel=1e-3)
    every, _ = so100(tmp_path / "every", keep_weights=True)
    assert parts(every, sizes, full)["global weights"][1] == pytest.approx(31 * one, rel=1e-3)
    buffered, _ = so100(tmp_path / "buffered", **{"federation.mode": "buffered"})
    older = 4  # clients, each of which may train from older weights than the others
    assert parts(buffered, sizes, full)["global weights"][0] == pytest.approx((5 + older) * one, rel=1e-3)
    saving, _ = so100(tmp_path / "saving", checkpoint_interval=10)
    assert parts(saving, sizes, full)["global weights"][1] == pytest.approx(5 * one, rel=1e-3)
    saved = parts(saving, sizes, full)["saved policies"][1]
    assert saved == pytest.approx(4 * (one + 2 * 350_165_184), rel=1e-3)


def test_updates_of_clients(tmp_path: Path, full: PolicyShapes) -> None:
    one = 399_523_968
    found = {}
    for name, changes in {
        "fp32": {},
        "kept": {"keep_updates": True, "rounds": 3},
        "lora": {"training.scope": "lora"},
        "bf16": {"federation.wire": "bf16"},
        "int8": {"federation.wire": "int8"},
        "secure": {
            "federation.secure": True,
            "aggregation.quarantine_factor": 0,
            "evaluation.clients_frequency": 0,
            "keep_updates": True,
            "rounds": 3,
        },
    }.items():
        session, sizes = so100(tmp_path / name, **changes)
        found[name] = parts(session, sizes, full)["clients' updates"]
    assert found["fp32"] == (pytest.approx(8 * one, rel=1e-3), 0)
    assert found["kept"][1] == pytest.approx(3 * 4 * one, rel=1e-3)
    assert found["lora"][0] == pytest.approx(8 * 13_664_256, rel=0.05)
    assert found["bf16"][0] == pytest.approx(4 * one, rel=1e-3)
    kept = 3 * 5 * one / 2  # four masked updates and their sum
    deltas = 8 * one
    assert found["secure"] == (pytest.approx(10 * one / 2 + deltas + kept, rel=1e-3), pytest.approx(kept, rel=1e-3))
    assert found["int8"][0] == pytest.approx(8 * one / 4 + 8 * one, rel=0.05)  # and the quantization error


def test_datasets_are_downloaded_once_and_older_ones_are_copied(tmp_path: Path, full: PolicyShapes) -> None:
    session, sizes = so100(tmp_path, version="v2.1")
    found = parts(session, sizes, full)
    assert found["repaired copies"] == found["downloaded datasets"]
    once = each_dataset_once((*sizes, *sizes))
    assert [size.dataset for size in once] == [size.dataset for size in sizes]
    here = tuple(size.model_copy(update={"is_here": True}) for size in sizes)
    assert "downloaded datasets" not in parts(session, here, full)


def test_a_shared_dataset_counts_once(tmp_path: Path) -> None:
    publish(tmp_path, "shared")
    shared = {"dataset": f"local:{tmp_path}/shared", "clients": 4}
    session = parse_session({"partition": shared, "data": {"holdout_episodes": 5}, "policy": {"path": "tiny"}}, "test")
    (size,) = dataset_sizes(session)
    assert (size.clients, size.training_frames, size.held_out_frames) == (4, 45 * 250, 5 * 250)


def test_the_line_that_a_session_starts_with(tmp_path: Path, full: PolicyShapes) -> None:
    session, sizes = so100(tmp_path)
    assert disk_line(disk_use(session, sizes, full)) == (
        "disk: up to 7.4 GB in the session's folder (3.4 GB stay), up to 17 GB in the cache (features 14 GB)"
    )

"""Memory and time of a session against what was measured, and suggestions that are computed, not listed."""

from pathlib import Path
from typing import Any

import pytest
from full_policy_tensors import CONFIG, full_policy_tensors

from zk0.policy.policy_shapes import TINY_SHAPES, PolicyShapes, shapes_of_tensors
from zk0.resources.dataset_sizes import DatasetSize
from zk0.resources.estimate_text import shortage_lines, stage_rows, total_row
from zk0.resources.host_capacity import HostCapacity
from zk0.resources.memory_use import memory_use
from zk0.resources.policy_work import activation_bytes, policy_work
from zk0.resources.run_time import Speed, reference_speed, run_time
from zk0.resources.speed_cache import read_speed, write_speed
from zk0.resources.suggestions import SessionNeeds, find_shortages
from zk0.settings.loading import load_session, override_session
from zk0.settings.session import Session

SO100 = Path(__file__).parents[2] / "deployments/sessions/so100.toml"
LAPTOP = HostCapacity(
    memory_bytes=16 * 10**9, cores=4, has_gpu=False, free_session_bytes=10**11, free_cache_bytes=10**11, same_disk=True
)
MIB = 2**20


@pytest.fixture(scope="module")
def full() -> PolicyShapes:
    return shapes_of_tensors(CONFIG, full_policy_tensors())


@pytest.fixture(scope="module")
def in_fp32() -> PolicyShapes:
    """The policy with a vision-language model in float32, as most benchmarks have it."""
    return shapes_of_tensors({**CONFIG, "load_vlm_weights": False}, full_policy_tensors())


def sizes_of(session: Session, episodes: int = 50, frames: int = 12_500) -> tuple[DatasetSize, ...]:
    """Sizes of a session's datasets, all alike, none of them on this machine."""
    names = [(c.dataset, 1) for c in session.clients] + [(e.dataset, 0) for e in session.evaluation.used_datasets()]
    return tuple(
        DatasetSize(
            dataset=dataset, purpose="test", episodes=episodes, frames=frames, clients=clients,
            held_out_episodes=1 if clients else episodes, pixels=2 * 480 * 640, stored_bytes=3 * 10**8, source="hub",
            is_here=False, needs_repair=False,
        )
        for dataset, clients in names
    )  # fmt: skip


def needs_of(
    shapes: PolicyShapes, machine: HostCapacity = LAPTOP, speed: Speed | None = None, **changes: Any
) -> SessionNeeds:
    session = load_session(SO100, changes)
    return SessionNeeds(session=session, sizes=sizes_of(session), policy=shapes, machine=machine, speed=speed)


def test_operations_are_those_that_were_counted(full: PolicyShapes) -> None:
    twelve_tokens = policy_work(full.model_copy(update={"task_tokens": 12}), cameras=2)
    assert twelve_tokens.vision == pytest.approx(430e9, rel=0.02)
    assert twelve_tokens.text == pytest.approx(43e9, rel=0.1)
    assert twelve_tokens.expert == pytest.approx(11e9, rel=0.1)


@pytest.mark.parametrize(
    ("changes", "peak_mib"),
    [
        ({}, 4475),
        ({"training.features": "kv"}, 4458),
        ({"training.features": "off"}, 4654),
        ({"training.scope": "lora"}, 3029),
    ],
)
def test_memory_of_a_worker_is_what_was_measured(in_fp32: PolicyShapes, changes: dict[str, Any], peak_mib: int) -> None:
    """docs/benchmarks/speed.md: 450,046,176 parameters, batch 2, few frames."""
    session = load_session(SO100, {**changes, "training.batch_size": 2})
    found = memory_use(session, (), in_fp32, on_gpu=False)
    assert found.workers == 2
    assert found.worker_bytes == pytest.approx(peak_mib * MIB, rel=0.12)


def test_activations_are_what_was_measured(in_fp32: PolicyShapes) -> None:
    assert 61e6 <= activation_bytes(in_fp32, 2, "kv") <= 100e6
    assert activation_bytes(in_fp32, 2, "off") == pytest.approx(207e6, rel=0.35)


def test_batches_in_pieces_and_graphics_memory(full: PolicyShapes) -> None:
    session = load_session(SO100)
    pieces = override_session(session, {"training.accumulate_steps": 8}, "test")
    whole, part = (memory_use(s, (), full, on_gpu=False).worker_bytes for s in (session, pieces))
    assert whole - part == 56 * activation_bytes(full, 2, "embeddings")
    as_fits = override_session(session, {"training.accumulate_steps": 0}, "test")
    least = memory_use(as_fits, (), full, on_gpu=False).worker_bytes
    assert whole - least == 63 * activation_bytes(full, 2, "embeddings")
    few = memory_use(session, sizes_of(session, episodes=2, frames=8), full, on_gpu=False).worker_bytes  # 4 to train on
    assert whole - few == pytest.approx(60 * activation_bytes(full, 2, "embeddings"), rel=1e-4)
    on_gpu = memory_use(session, (), full, on_gpu=True)
    assert on_gpu.gpu_bytes > 64 * activation_bytes(full, 2, "embeddings")
    assert on_gpu.worker_bytes < whole
    halves = override_session(session, {"training.gpu_share": 0.5}, "test")
    assert memory_use(halves, (), full, on_gpu=True).gpu_bytes > 1.5 * on_gpu.gpu_bytes


def test_features_of_90000_frames_take_about_130_hours(full: PolicyShapes) -> None:
    session = load_session(SO100, {"federation.workers": 1})
    sizes = tuple(size.model_copy(update={"frames": 22_500}) for size in sizes_of(session) if size.clients)
    time = run_time(session, sizes, full, reference_speed(full), LAPTOP)
    assert 100 < time.features / 3600 < 190
    two = run_time(load_session(SO100), sizes, full, reference_speed(full), LAPTOP)
    assert two.features == pytest.approx(time.features / 2, rel=1e-6)
    one_core = LAPTOP.model_copy(update={"cores": 1})
    assert run_time(load_session(SO100), sizes, full, reference_speed(full), one_core).features == time.features


def test_time_of_the_stages_by_hand() -> None:
    speed = Speed(vision=1e9, text=2e9, expert=4e9, optimizer=1e6, source="test")
    changes = {"rounds": 3, "training.local_steps": 10, "training.batch_size": 4, "federation.workers": 2}
    session = load_session(SO100, changes)
    work = policy_work(TINY_SHAPES, cameras=2)
    time = run_time(session, sizes_of(session), TINY_SHAPES, speed, LAPTOP)
    step = 4 * (work.text / 2e9 + 3 * work.expert / 4e9) + TINY_SHAPES.trainable / 1e6
    assert time.longest_turn == pytest.approx(10 * step)
    assert time.training == pytest.approx(3 * 4 * 10 * step / 2)
    buffered = load_session(SO100, {**changes, "federation.mode": "buffered", "buffer.size": 3})
    in_buffers = run_time(buffered, sizes_of(buffered), TINY_SHAPES, speed, LAPTOP)
    assert in_buffers.training == pytest.approx(3 * 3 * 10 * step / 2)
    frame = work.text / 2e9 + (8 + TINY_SHAPES.denoising_steps) * work.expert / 4e9
    assert time.evaluation == pytest.approx(4 * (4 * 63 / 2 + 3 * 50 * 63) * frame)


def test_suggestions_fit_a_laptop_and_are_computed(full: PolicyShapes) -> None:
    needs = needs_of(full)
    (memory,) = find_shortages(needs)
    assert memory.resource == "memory"
    assert [s.change for s in memory.suggestions] == ["--set training.accumulate_steps=8"]
    pieces = override_session(needs.session, {"training.accumulate_steps": 8}, "test")
    assert memory.suggestions[0].needed == memory_use(pieces, needs.sizes, full, on_gpu=False).total_bytes
    small = LAPTOP.model_copy(update={"memory_bytes": 8 * 10**9})
    (memory,) = find_shortages(needs_of(full, small))
    assert [s.change.removeprefix("--set ") for s in memory.suggestions] == [
        "training.accumulate_steps=8", "federation.workers=1", "training.scope=lora",
    ]  # fmt: skip
    needed = [s.needed for s in memory.suggestions]
    assert needed == sorted(needed, reverse=True)
    assert [s.fits for s in memory.suggestions] == [False, False, True]


def test_a_limit_of_the_sessions_folder(full: PolicyShapes) -> None:
    needs = needs_of(full, keep_weights=True, disk_limit_gb=8.0)
    (folder,) = [s for s in find_shortages(needs) if s.resource == "folder"]
    assert [(s.change, s.fits) for s in folder.suggestions] == [("--set keep_weights=false", True)]
    assert next(shortage_lines([folder])).endswith("in the session's folder, disk_limit_gb allows 8.0 GB")


def test_a_disk_that_is_too_small_for_keys_and_values(full: PolicyShapes) -> None:
    machine = LAPTOP.model_copy(update={"free_session_bytes": 40 * 10**9, "memory_bytes": 10**11})
    (disk,) = find_shortages(needs_of(full, machine, **{"training.features": "kv"}))
    assert [(s.change, s.fits) for s in disk.suggestions] == [("--set training.features=embeddings", True)]
    lines = list(shortage_lines([disk]))
    assert lines[0] == "warning: disk: up to 60 GB, 40 GB are free"
    assert lines[1].startswith("  with --set training.features=embeddings: 24 GB, which fits")


def test_a_cpu_is_too_slow_for_the_whole_session(full: PolicyShapes) -> None:
    machine = LAPTOP.model_copy(update={"memory_bytes": 10**11})
    time, turn = find_shortages(needs_of(full, machine, reference_speed(full)))
    assert (time.resource, turn.resource) == ("time", "turn")
    assert time.needed > 20 * 86_400
    assert any("a quarter of the episodes" in s.change for s in time.suggestions)
    assert not time.suggestions[0].fits
    assert turn.available == 3600
    assert turn.suggestions[-1].fits
    slow = dict.fromkeys(("vision", "text", "expert"), 1e10)
    (time, _) = find_shortages(needs_of(full, machine, reference_speed(full).model_copy(update=slow)))
    assert not any(s.fits for s in time.suggestions)
    assert any("half the width" in s.change for s in time.suggestions)
    odd = full.model_copy(update={"image_tokens": 81})
    (time, _) = find_shortages(needs_of(odd, machine, reference_speed(odd).model_copy(update=slow)))
    assert not any("half the width" in s.change for s in time.suggestions)
    assert list(shortage_lines([time]))[-1].startswith("  these changes are not enough: use a faster machine")


def test_a_small_session_has_no_shortage() -> None:
    needs = needs_of(TINY_SHAPES, speed=reference_speed(TINY_SHAPES), rounds=2, **{"training.local_steps": 10})
    assert find_shortages(needs) == ()
    estimate = needs.estimate()
    rows = {row[0]: row[1:] for row in stage_rows(estimate)}
    assert rows["datasets and policy"] == ("–", "–", "2.1 GB", "2.1 GB")  # seven downloads of 300 MB
    assert total_row(estimate)[2] == rows["training"][1]
    assert sum(one.disk_bytes for one in estimate.stages) == sum(p.peak_bytes for p in estimate.disk.parts)


def test_traffic_is_that_of_nodes(full: PolicyShapes) -> None:
    session = load_session(
        SO100.parent / "federation.toml", {"federation.nodes": ["a", "b", "c"], "rounds": 2, "policy.path": "tiny"}
    )
    needs = SessionNeeds(session=session, sizes=(), policy=full, machine=LAPTOP, speed=None)
    traffic = {one.stage: one.traffic_bytes for one in needs.estimate().stages}
    assert traffic["training"] == pytest.approx(2 * 3 * 2 * 399_523_968, rel=1e-3)
    assert traffic["evaluation"] == pytest.approx(3 * 3 * 399_523_968, rel=1e-3)
    assert needs.estimate().time is None


def test_a_measured_speed_is_kept_for_machine_and_policy(tmp_path: Path, full: PolicyShapes) -> None:
    session = load_session(SO100, {"cache_dir": str(tmp_path)})
    speed = reference_speed(full)
    write_speed(session, full, LAPTOP, speed)
    assert read_speed(session, full, LAPTOP) == speed
    assert read_speed(session, TINY_SHAPES, LAPTOP) is None
    assert read_speed(session, full, LAPTOP.model_copy(update={"has_gpu": True})) is None
    (file,) = tmp_path.rglob("*.json")
    file.write_text("{")
    assert read_speed(session, full, LAPTOP) is None

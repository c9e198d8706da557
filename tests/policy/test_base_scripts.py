"""The scripts that make the base policy: what they record, and that an interrupted training ends as any other."""

import tomllib
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from zk0.simulator.tasks import find_task

TASKS = Path("scripts/base/training_tasks.toml")
SESSIONS = Path("deployments/sessions")
pytestmark = pytest.mark.usefixtures("base_scripts")


@pytest.fixture(scope="module")
def record(base_scripts: Path) -> ModuleType:
    import record as module

    return module


class _Interrupted(Exception):
    """Ends a training as a signal would."""


def _train(file: Path, stop_after: int | None = None, steps: int = 30) -> list[float]:
    """Weights after training on random batches; `stop_after` raises after that many of them."""
    import resumable

    torch.manual_seed(5)
    layer = nn.Linear(3, 1)
    conditions = {"steps": steps}
    training = resumable.ResumableTraining(
        nn.ModuleList([layer]), file, conditions, 0.01, steps, betas=(0.9, 0.99), warmup=0.1
    )
    made = 0

    def loss_of_batch() -> Tensor:
        nonlocal made
        if made == stop_after:
            raise _Interrupted
        made += 1
        return layer(torch.randn(4, 3)).pow(2).mean()

    training.run(loss_of_batch)
    return torch.cat([p.flatten() for p in layer.parameters()]).tolist()


def test_an_interrupted_training_ends_with_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import resumable

    expected = _train(tmp_path / "whole.pt")
    monkeypatch.setattr(resumable, "SAVE_SECONDS", 0)
    for stop in (7, 4, 1):
        with pytest.raises(_Interrupted):
            _train(tmp_path / "state.pt", stop)
    assert _train(tmp_path / "state.pt") == expected
    assert _train(tmp_path / "state.pt", 0) == expected, "nothing is left to do"


def test_a_state_of_another_training_is_refused(tmp_path: Path) -> None:
    _train(tmp_path / "state.pt")
    with pytest.raises(SystemExit, match=r"started with .*30.*expected .*31.*choose another --work"):
        _train(tmp_path / "state.pt", steps=31)


def test_recordings_are_balanced_and_have_seeds_of_their_own(record: ModuleType, tmp_path: Path) -> None:
    shards = list(record.plan_shards(TASKS, 3, tmp_path))
    tasks = {shard.task for shard in shards}
    assert len(shards) == 3 * len(tasks) == len({shard.path for shard in shards})
    assert {shard.task for shard in shards[: len(tasks)]} == tasks, "a stopped recording has every task"
    starts = sorted(shard.first_seed for shard in shards)
    assert min(after - before for before, after in pairwise(starts)) >= 1000
    assert {find_task(task).motion for task in tasks} == {"lift", "place", "stack"}


def test_no_client_trains_on_a_task_of_the_base_policy(record: ModuleType, tmp_path: Path) -> None:
    from random_scenes import MOTIONS, allowed_tasks

    tasks = {shard.task for shard in record.plan_shards(TASKS, 1, tmp_path)}
    drawn = {task for motion in MOTIONS for task in allowed_tasks(TASKS, motion)}
    assert {"lift-black", "place-orange-red", "stack-black-yellow"} <= drawn
    tasks |= drawn
    assert not [task for task in tasks if find_task(task).cube in ("red", "yellow")]
    used = set()
    for file in SESSIONS.glob("*.toml"):
        clients = tomllib.loads(file.read_text(encoding="utf-8")).get("clients", [])
        used |= {client["dataset"].removeprefix("sim:") for client in clients}
    assert {"lift-red", "stack-red-blue"} <= used
    assert not tasks & used


def test_a_recorded_frame_is_rendered_again_from_its_columns(record: ModuleType) -> None:
    """Only the colors change: images of a row equal those of its simulated state, wherever the cube is."""
    from random_scenes import set_objects

    with record.ReplayableArm("stack-green-red", record.SIMULATOR, render=True) as arm:
        seeds, rng = iter(range(1_500_000_000, 1_500_000_020)), np.random.default_rng(0)
        steps = next(found for seed in seeds if (found := record.run_episode(arm, seed, rng)))
        for step in (steps[0], steps[len(steps) // 2]):
            expected = arm.render_state(step["qpos"])
            again = arm.render_state(set_objects(arm, step | {"task": "stack-green-red"}))
            for camera, image in expected.items():
                differs = np.abs(again[camera].astype(int) - image).max(2) > 16
                assert differs.mean() < 0.01, f"{camera}: {differs.mean():.1%} of the pixels differ"
        blue = arm.render_state(set_objects(arm, step | {"task": "stack-blue-red"}))["wrist"]
        assert (np.abs(blue.astype(int) - expected["wrist"]).max(2) > 16).mean() > 0.01


def test_moved_objects_have_no_action_and_do_not_overlap() -> None:
    from random_scenes import CLEARANCE_M, draw_row

    rng = np.random.default_rng(3)
    poses = {
        "n": np.full(4, 10),
        "cube": np.array([[0.25, y, 0.0125] for y in (-0.03, 0.0, 0.02, 0.03)]),
        "goal": np.array([[0.25, y, 0.0125] for y in (0.03, 0.05, -0.03, -0.02)]),
        "cube_yaw": np.zeros(4),
        "goal_yaw": np.zeros(4),
        "site": np.array([[0.25, 0.0, 0.2]] * 4),
    }
    rows = [draw_row(poses, rng, "stack") for _ in range(200)]
    moved = [row for row in rows if row["n"] == 0]
    assert 90 < len(moved) < 150
    assert all(np.linalg.norm((row["cube"] - row["goal"])[:2]) > CLEARANCE_M for row in moved)
    assert len({tuple(row["cube"]) for row in rows if row["n"]}) == 4, "the others are as recorded"


def _columns(frames: int) -> dict[str, np.ndarray]:
    """Recorded frames of noise; every tenth scene is held out."""
    rng = np.random.default_rng(0)
    images = {camera: rng.integers(0, 256, (frames, 96, 96, 3), np.uint8) for camera in ("overhead", "wrist")}
    places = {name: rng.normal(0, 0.1, (frames, 3)) for name in ("cube", "goal", "site")}
    return {
        **images,
        **places,
        "task": np.array(["stack-green-red", "lift-blue"] * (frames // 2)),
        "state": rng.normal(0, 30, (frames, 6)).astype(np.float32),
        "chunk": rng.normal(0, 30, (frames, 10, 6)).astype(np.float32),
        "n": np.full(frames, 10),
        "cube_yaw": np.zeros(frames),
        "goal_yaw": np.zeros(frames),
        "rot": np.broadcast_to(np.eye(3), (frames, 3, 3)),
        "episode": np.arange(frames) % 10,
    }


def test_both_parts_train_what_they_should(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from base_columns import join_columns, measure_frames
    from teach_actions import teach_actions
    from teach_vision import teach_vision
    from train import build_policy

    torch.manual_seed(0)
    policy, recorded = build_policy(tmp_path).eval(), _columns(20)
    statistics = measure_frames(recorded)
    before = {name: weight.clone() for name, weight in policy.named_parameters()}

    def changed() -> set[str]:
        now = dict(policy.named_parameters())
        found = {name for name, weight in before.items() if not torch.equal(weight, now[name])}
        before.update({name: weight.clone() for name, weight in now.items()})
        parts = ("vision_model", "connector", "text_model", "lm_expert", "action_out_proj")
        return {part for part in parts if any(part in name for name in found)}

    teach_vision(policy, recorded, 3, 1e-3, 4, tmp_path)
    assert changed() == {"vision_model", "connector"}
    columns = join_columns(recorded, _columns(6) | {"episode": np.zeros(6, int)})
    teach_actions(policy, columns, statistics, 3, 1e-3, 4, tmp_path, 0)
    assert changed() == {"text_model", "lm_expert", "action_out_proj"}
    output = capsys.readouterr().out
    assert "held-out scenes, cube, wrist: median error" in output
    assert "held-out scenes: flow-matching loss" in output
    assert "held-out scenes, task, goal, overhead: median error" in output

"""A policy moves simulated arms; results, films and recordings of it lie on disk, once."""

import json
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import imageio.v2 as imageio
import numpy as np
import pytest
import torch

from zk0.errors import EvaluationError, SimulatorError
from zk0.folder import SessionFolder
from zk0.records import CAMERA_PREFIX, STATE, Checkpoint, RoundRecord, Statistics
from zk0.results import read_rollouts
from zk0.session import RolloutSettings, Session, SimulatorSettings, parse_session
from zk0.simulator.environment import Observation
from zk0.training.closed_loop import Actor, attempt_task, roll_out_task, subject_of
from zk0.training.judge import Ground, start_policy

WHEN = datetime(2026, 1, 2, 3, 4, 5)


@pytest.fixture(scope="module", autouse=True)
def _images() -> None:
    from zk0.simulator.rendering import choose_backend

    if choose_backend(required=False) is None:
        pytest.skip("no OpenGL backend renders here")


@pytest.fixture
def actor(policy: Any, statistics: Statistics) -> Actor:
    from zk0.robot.policy import make_processors

    cameras = {c: f"{CAMERA_PREFIX}{c}" for c in ("overhead", "wrist")}
    return Actor(policy, *make_processors(policy, statistics), cameras)


def moment(seed: int) -> Observation:
    rng = np.random.default_rng(seed)
    images = {c: rng.integers(0, 255, (96, 96, 3), dtype=np.uint8) for c in ("overhead", "wrist")}
    return Observation(rng.normal(0, 20, 6).astype(np.float32), images, "Lift it." if seed else "Put it on the disc.")


class TestActor:
    def test_it_acts_as_lerobots_own_policy_with_the_noise_of_the_seed(self, actor: Actor) -> None:
        seen = [moment(seed) for seed in range(3)]
        act = actor.acting(replan_steps=4)
        first, second = act([7, 8, 9], seen), act([7, 8, 9], seen)
        assert [chunk.shape for chunk in first] == [(4, 6)] * 3
        generator = torch.Generator().manual_seed(8)
        for answered in (first[1], second[1]):
            batch = {
                f"{CAMERA_PREFIX}{name}": torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255
                for name, image in seen[1].images.items()
            }
            ready = actor.preprocessor({STATE: torch.from_numpy(seen[1].state)[None], "task": [seen[1].task], **batch})
            noise = torch.randn(1, 10, 32, generator=generator)
            with torch.no_grad():
                wanted = actor.postprocessor(actor.policy.predict_action_chunk(ready, noise=noise))[0, :4]
            np.testing.assert_allclose(answered, wanted.numpy(), atol=2e-4)

    def test_the_noise_of_an_attempt_does_not_depend_on_its_neighbours(self, actor: Actor) -> None:
        together = actor.acting(5)([1, 2], [moment(1), moment(2)])
        alone = actor.acting(5)([2], [moment(2)])
        np.testing.assert_allclose(together[1], alone[0], atol=2e-4)
        assert np.abs(together[1] - actor.acting(5)([3], [moment(2)])[0]).max() > 0.1

    def test_a_camera_that_the_simulator_lacks_is_named(self, actor: Actor) -> None:
        other = Actor(actor.policy, actor.preprocessor, actor.postprocessor, {"left": "observation.images.left"})
        with pytest.raises(SimulatorError, match="no camera left; it has overhead, wrist"):
            attempt_task(other, "lift-red", SimulatorSettings(), RolloutSettings(), 0)


@pytest.fixture
def session(kept: Path, recordings: dict[str, Path]) -> Session:
    values = {
        "rounds": 1,
        "clients": [
            {"name": "lifts", "dataset": "sim:lift-red"},
            {"name": "b", "dataset": f"local:{recordings['b']}"},
        ],
        "evaluation": {"datasets": [{"dataset": f"local:{recordings['judge']}"}]},
        "policy": {"path": "tiny"},
        "rollout": {"tasks": ["lift-red"], "seeds": [3, 4, 5], "max_steps": 7, "environments": 2, "keep_dataset": True},
        "video": {"rollouts": 1, "camera_height": 96},
        "cache_dir": str(kept),
    }
    return parse_session(values, "test")


@pytest.fixture
def round_of(session: Session, statistics: Statistics, tmp_path: Path) -> Callable[..., tuple[Ground, RoundRecord]]:
    def make(number: int = 1) -> tuple[Ground, RoundRecord]:
        path = tmp_path / "weights.safetensors"
        recipe, digest, size = start_policy(session, path)
        checkpoint = Checkpoint(round=number, path=path.name, digest=digest, bytes=size)
        ground = Ground(recipe=recipe, members=(), sets=(), statistics=statistics)
        return ground, RoundRecord(round=number, checkpoint=checkpoint, seconds=1.0, finished_at="")

    return make


def test_results_film_and_recordings_are_made_once(session: Session, round_of: Any, tmp_path: Path) -> None:
    from zk0.robot.check import check_dataset

    ground, record = round_of()
    here = SessionFolder(tmp_path)
    found = roll_out_task(session, ground, here, record, "lift-red", WHEN)
    folder = tmp_path / "evaluate/round_1/lifts"
    stems = ["rollout_20260102_030405", "rollout_20260102_030406", "rollout_20260102_030407"]
    assert sorted(p.name for p in folder.iterdir()) == [
        "dataset", *sorted([f"{stem}.json" for stem in stems] + [f"{stems[0]}.mp4"])
    ]  # fmt: skip
    assert [(r.seed, r.steps, r.client, r.round) for r in found] == [(s, 7, "lifts", 1) for s in (3, 4, 5)]
    assert read_rollouts(tmp_path) == list(found)
    said = json.loads((folder / f"{stems[0]}.json").read_text())
    assert said["video"] == f"evaluate/round_1/lifts/{stems[0]}.mp4"
    assert (said["success"], said["duration_seconds"], said["policy_loss"]) == (False, 0.7, None)
    assert said["smoothness"] < -1
    with imageio.get_reader(folder / f"{stems[0]}.mp4") as film:
        assert film.count_frames() == 8
        assert film.get_meta_data()["fps"] == 10

    report = check_dataset(folder / "dataset", dataset="rollouts")
    assert report.errors == ()
    assert (report.episodes, report.frames, report.tasks) == (3, 21, ("Pick up the red cube",))

    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
    (folder / "rollout_20250101_000000.mp4").write_bytes(b"what a killed process left")
    assert roll_out_task(session, ground, here, record, "lift-red", WHEN) == found
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*")} == before


def test_another_model_or_more_seeds_are_made(session: Session, round_of: Any, tmp_path: Path) -> None:
    ground, record = round_of()
    settings = session.rollout.model_copy(update={"keep_dataset": False, "seeds": (3,), "max_steps": 2})
    quick = session.model_copy(update={"rollout": settings})
    (first,) = roll_out_task(quick, ground, SessionFolder(tmp_path), record, "lift-red", WHEN)
    more = quick.model_copy(update={"rollout": settings.model_copy(update={"seeds": (3, 4)})})
    again = roll_out_task(more, ground, SessionFolder(tmp_path), record, "lift-red", WHEN)
    assert [r.seed for r in again] == [3, 4]
    assert again[0].video != first.video
    assert len(read_rollouts(tmp_path)) == 3


def test_a_film_that_cannot_be_made_is_told_and_fails_nothing(
    session: Session, round_of: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", "/bin/false")
    ground, record = round_of()
    settings = session.rollout.model_copy(update={"keep_dataset": False, "seeds": (3,), "max_steps": 2})
    quick = session.model_copy(update={"rollout": settings})
    (found,) = roll_out_task(quick, ground, SessionFolder(tmp_path), record, "lift-red", WHEN)
    assert found.video is None
    assert "cannot be written" in str(found.video_fault) or "encoder" in str(found.video_fault)
    assert list(tmp_path.rglob("*.mp4")) == []


def test_the_loss_of_the_task_stands_beside_its_attempts(session: Session, round_of: Any) -> None:
    from zk0.records import ClientEvaluation, ClientScore, EpisodeScore, SetScore

    _, record = round_of()
    one = EpisodeScore(episode=0, frames=3, actions=9, policy_loss=0.5, action_error_degrees=1.0)
    score = SetScore(
        dataset="sim:lift-red", episodes=(one,), frames=3, policy_loss=0.5, policy_loss_se=None,
        action_error_degrees=1.0, joint_error_degrees=(), horizon_error_degrees=(),
    )  # fmt: skip
    said = ClientEvaluation(
        round=1, scores=(ClientScore(client="lifts", score=score),), normalization="pooled", seed=1, times=8, seconds=1
    )
    judged = record.model_copy(update={"client_evaluation": said})
    assert subject_of(session, judged, "lift-red").policy_loss == 0.5
    assert subject_of(session, record, "lift-red").policy_loss is None
    unseen = subject_of(session, judged, "stack-red-blue")
    assert (unseen.client, unseen.policy_loss) == (None, None)


def test_a_result_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "rollout_1.json").write_text('{"kind": "closed-loop", "task": 3}')
    with pytest.raises(EvaluationError, match=r"rollout_1.json: not the result of an attempt or a film"):
        read_rollouts(tmp_path)

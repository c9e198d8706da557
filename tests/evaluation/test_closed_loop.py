"""Closed-loop rollouts in the simulator: results, videos and the dataset are written once."""

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
from zk0.evaluation.closed_loop import PolicyActor, roll_out_task, rollout_subject, run_attempts
from zk0.evaluation.global_model import build_start_policy
from zk0.evaluation.session_setup import SessionSetup
from zk0.records import CAMERA_PREFIX, STATE, Checkpoint, RoundRecord, Statistics
from zk0.settings.dataset_settings import SimulatorSettings
from zk0.settings.evaluation_settings import RolloutSettings
from zk0.settings.loading import parse_session
from zk0.settings.session import Session
from zk0.simulator.arm import Observation
from zk0.storage.results import read_rollouts
from zk0.storage.session_folder import SessionFolder

WHEN = datetime(2026, 1, 2, 3, 4, 5)
pytestmark = pytest.mark.usefixtures("images")


@pytest.fixture
def actor(policy: Any, statistics: Statistics) -> PolicyActor:
    from zk0.policy.processors import make_processors

    cameras = {c: f"{CAMERA_PREFIX}{c}" for c in ("overhead", "wrist")}
    return PolicyActor(policy, *make_processors(policy, statistics), cameras)


def observation(seed: int) -> Observation:
    rng = np.random.default_rng(seed)
    images = {c: rng.integers(0, 255, (96, 96, 3), dtype=np.uint8) for c in ("overhead", "wrist")}
    return Observation(rng.normal(0, 20, 6).astype(np.float32), images, "Lift it." if seed else "Put it on the disc.")


class TestActor:
    def test_actions_equal_lerobots_with_the_noise_of_the_seed(self, actor: PolicyActor) -> None:
        observations = [observation(seed) for seed in range(3)]
        seen = [[one] for one in observations]
        act = actor.act_function(replan_steps=4)
        first, second = act([7, 8, 9], seen), act([7, 8, 9], seen)
        assert [chunk.shape for chunk in first] == [(4, 6)] * 3
        generator = torch.Generator().manual_seed(8)
        for actions in (first[1], second[1]):
            batch = {
                f"{CAMERA_PREFIX}{name}": torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255
                for name, image in observations[1].images.items()
            }
            ready = actor.preprocessor(
                {STATE: torch.from_numpy(observations[1].state)[None], "task": [observations[1].task], **batch}
            )
            noise = torch.randn(1, 10, 32, generator=generator)
            with torch.no_grad():
                expected = actor.postprocessor(actor.policy.predict_action_chunk(ready, noise=noise))[0, :4]
            np.testing.assert_allclose(actions, expected.numpy(), atol=2e-4)

    def test_the_noise_of_an_attempt_does_not_depend_on_the_batch(self, actor: PolicyActor) -> None:
        together = actor.act_function(5)([1, 2], [[observation(1)], [observation(2)]])
        alone = actor.act_function(5)([2], [[observation(2)]])
        np.testing.assert_allclose(together[1], alone[0], atol=2e-4)
        assert np.abs(together[1] - actor.act_function(5)([3], [[observation(2)]])[0]).max() > 0.1

    def test_a_camera_that_the_simulator_lacks_is_rejected(self, actor: PolicyActor) -> None:
        other = PolicyActor(actor.policy, actor.preprocessor, actor.postprocessor, {"left": "observation.images.left"})
        with pytest.raises(SimulatorError, match="no camera left; it has overhead, wrist"):
            run_attempts(other, "lift-red", SimulatorSettings(), RolloutSettings(), 0)


@pytest.fixture
def session(shared_cache: Path, recordings: dict[str, Path]) -> Session:
    values = {
        "rounds": 1,
        "clients": [
            {"name": "lifts", "dataset": "sim:lift-red"},
            {"name": "b", "dataset": f"local:{recordings['b']}"},
        ],
        "evaluation": {"datasets": [{"dataset": f"local:{recordings['evaluation']}"}]},
        "policy": {"path": "tiny"},
        "rollout": {"tasks": ["lift-red"], "seeds": [3, 4, 5], "max_steps": 7, "environments": 2, "keep_dataset": True},
        "video": {"rollouts": 1, "camera_height": 96},
        "cache_dir": str(shared_cache),
    }
    return parse_session(values, "test")


@pytest.fixture
def round_of(
    session: Session, statistics: Statistics, tmp_path: Path
) -> Callable[..., tuple[SessionSetup, RoundRecord]]:
    def make(number: int = 1) -> tuple[SessionSetup, RoundRecord]:
        path = tmp_path / "weights.safetensors"
        recipe, digest, size = build_start_policy(session, path)
        checkpoint = Checkpoint(round=number, path=path.name, digest=digest, bytes=size)
        setup = SessionSetup(recipe=recipe, members=(), sets=(), statistics=statistics)
        return setup, RoundRecord(round=number, checkpoint=checkpoint, seconds=1.0, finished_at="")

    return make


def test_results_video_and_dataset_are_written_once(session: Session, round_of: Any, tmp_path: Path) -> None:
    from zk0.data.check import check_dataset

    setup, record = round_of()
    here = SessionFolder(tmp_path)
    found = roll_out_task(session, setup, here, record, "lift-red", WHEN)
    folder = tmp_path / "evaluate/round_1/lifts"
    stems = ["rollout_20260102_030405", "rollout_20260102_030406", "rollout_20260102_030407"]
    assert sorted(p.name for p in folder.iterdir()) == [
        "dataset", *sorted([f"{stem}.json" for stem in stems] + [f"{stems[0]}.mp4"])
    ]  # fmt: skip
    assert [(r.seed, r.steps, r.client, r.round) for r in found] == [(s, 7, "lifts", 1) for s in (3, 4, 5)]
    assert read_rollouts(tmp_path) == list(found)
    result = json.loads((folder / f"{stems[0]}.json").read_text())
    assert result["video"] == f"evaluate/round_1/lifts/{stems[0]}.mp4"
    assert (result["success"], result["duration_seconds"], result["policy_loss"]) == (False, 0.7, None)
    assert result["duration"] == result["duration_seconds"]
    assert result["smoothness"] < -1
    with imageio.get_reader(folder / f"{stems[0]}.mp4") as video:
        assert video.count_frames() == 8
        assert video.get_meta_data()["fps"] == 10

    report = check_dataset(folder / "dataset", dataset="rollouts")
    assert report.errors == ()
    assert (report.episodes, report.frames, report.tasks) == (3, 21, ("Pick up the red cube",))

    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*")}
    (folder / "rollout_20250101_000000.mp4").write_bytes(b"left by a killed process")
    assert roll_out_task(session, setup, here, record, "lift-red", WHEN) == found
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*")} == before


def test_more_seeds_are_attempted_again(session: Session, round_of: Any, tmp_path: Path) -> None:
    setup, record = round_of()
    settings = session.rollout.model_copy(update={"keep_dataset": False, "seeds": (3,), "max_steps": 2})
    quick = session.model_copy(update={"rollout": settings})
    (first,) = roll_out_task(quick, setup, SessionFolder(tmp_path), record, "lift-red", WHEN)
    more = quick.model_copy(update={"rollout": settings.model_copy(update={"seeds": (3, 4)})})
    again = roll_out_task(more, setup, SessionFolder(tmp_path), record, "lift-red", WHEN)
    assert [r.seed for r in again] == [3, 4]
    assert again[0].video != first.video
    assert read_rollouts(tmp_path) == list(again)
    assert len(list(tmp_path.rglob("*.mp4"))) == 1


def test_a_video_that_cannot_be_rendered_is_reported_and_fails_nothing(
    session: Session, round_of: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", "/bin/false")
    setup, record = round_of()
    settings = session.rollout.model_copy(update={"keep_dataset": False, "seeds": (3,), "max_steps": 2})
    quick = session.model_copy(update={"rollout": settings})
    (found,) = roll_out_task(quick, setup, SessionFolder(tmp_path), record, "lift-red", WHEN)
    assert found.video is None
    assert "cannot be written" in str(found.video_error) or "encoder" in str(found.video_error)
    assert list(tmp_path.rglob("*.mp4")) == []


def test_the_subject_holds_the_loss_on_the_task(session: Session, round_of: Any) -> None:
    from zk0.records import ClientEvaluation, ClientScore, EpisodeScore, SetScore

    _, record = round_of()
    one = EpisodeScore(episode=0, frames=3, actions=9, policy_loss=0.5, action_error_degrees=1.0)
    score = SetScore(
        dataset="sim:lift-red", episodes=(one,), frames=3, policy_loss=0.5, policy_loss_se=None,
        action_error_degrees=1.0, joint_error_degrees=(), horizon_error_degrees=(),
    )  # fmt: skip
    on_clients = ClientEvaluation(
        round=1, scores=(ClientScore(client="lifts", score=score),), normalization="pooled", seed=1, times=8, seconds=1
    )
    evaluated = record.model_copy(update={"client_evaluation": on_clients})
    assert rollout_subject(session, evaluated, "lift-red").policy_loss == 0.5
    assert rollout_subject(session, record, "lift-red").policy_loss is None
    unseen = rollout_subject(session, evaluated, "stack-red-blue")
    assert (unseen.client, unseen.policy_loss) == (None, None)


def test_a_result_that_cannot_be_read_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "rollout_1.json").write_text('{"kind": "closed-loop", "task": 3}')
    with pytest.raises(EvaluationError, match=r"rollout_1.json: not a result of an attempt or a video"):
        read_rollouts(tmp_path)

"""The server: session setup, initial weights, evaluation of the global model, checkpoints."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from zk0.data.episode_reader import EpisodeReader
from zk0.data.locate import COMMIT_FILE
from zk0.data.statistics import pool_moments
from zk0.errors import CheckpointError, DatasetError, EvaluationError, PolicyError
from zk0.evaluation.evaluation_sets import prepare_evaluation_set
from zk0.evaluation.global_model import (
    build_start_policy,
    evaluate_weights,
    policy_with_weights,
    save_policy_checkpoint,
)
from zk0.evaluation.session_setup import SessionSetup
from zk0.records import Statistics
from zk0.robot.read_reference import read_policy_reference
from zk0.settings.dataset_settings import DataSettings, EvaluationSetSettings
from zk0.settings.loading import parse_session
from zk0.settings.session import Session


@pytest.fixture
def session(recordings: dict[str, Path], shared_cache: Path) -> Session:
    clients = [{"name": n, "dataset": f"local:{recordings[n]}"} for n in "ab"]
    evaluation_set = {"dataset": f"local:{recordings['evaluation']}"}
    values = {"clients": clients, "evaluation": {"datasets": [evaluation_set], "times": 2}, "policy": {"path": "tiny"}}
    return parse_session(values | {"cache_dir": str(shared_cache)}, "test")


@pytest.fixture
def session_setup(session: Session, statistics: Statistics, terms: Any, tmp_path: Path) -> SessionSetup:
    from zk0.client.client import Client

    cache = Path(session.cache_dir)
    members = tuple(Client(c, terms, tmp_path / c.name, cache).join() for c in session.clients)
    sets = tuple(prepare_evaluation_set(s, session) for s in session.evaluation_sets())
    recipe, _, _ = build_start_policy(session, tmp_path / "start.safetensors")
    return SessionSetup(recipe=recipe, members=members, sets=sets, statistics=statistics)


class TestEvaluationSet:
    @pytest.mark.parametrize(("last", "episodes"), [(None, (0, 1, 2)), (1, (2,)), (3, (0, 1, 2))])
    def test_the_last_episodes_are_evaluated(
        self, session: Session, last: int | None, episodes: tuple[int, ...]
    ) -> None:
        settings = session.evaluation_sets()[0].model_copy(update={"last_episodes": last})
        found = prepare_evaluation_set(settings, session)
        assert found.split.held_out == episodes
        assert len(found.digests) == len(episodes)

    def test_the_first_episodes_are_evaluated(self, session: Session) -> None:
        settings = session.evaluation_sets()[0].model_copy(update={"first_episodes": 2})
        assert prepare_evaluation_set(settings, session).split.held_out == (0, 1)
        with pytest.raises(EvaluationError, match=r"3 episodes, expected at least first_episodes = 4"):
            prepare_evaluation_set(settings.model_copy(update={"first_episodes": 4}), session)
        with pytest.raises(ValueError, match="first_episodes and last_episodes: give one"):
            EvaluationSetSettings(dataset="x/y", first_episodes=1, last_episodes=1)

    def test_a_broken_set_is_repaired_if_the_session_repairs(self, session: Session, tmp_path: Path) -> None:
        settings = session.evaluation_sets()[0]
        root = Path(shutil.copytree(settings.dataset.removeprefix("local:"), tmp_path / "set"))
        info = json.loads((root / "meta/info.json").read_text())
        (root / "meta/info.json").write_text(json.dumps(info | {"total_frames": 7}))
        broken = settings.model_copy(update={"dataset": f"local:{root}"})
        with pytest.raises(DatasetError, match="frame-count"):
            prepare_evaluation_set(broken, session)
        repairing = session.model_copy(update={"data": DataSettings(repair="repair"), "cache_dir": str(tmp_path)})
        found = prepare_evaluation_set(broken, repairing)
        assert found.report.repairs == ("recount",)
        assert found.digests == prepare_evaluation_set(settings, session).digests

    def test_the_commit_of_a_download_is_in_its_report(self, session: Session, tmp_path: Path) -> None:
        settings = session.evaluation_sets()[0]
        assert prepare_evaluation_set(settings, session).report.commit is None
        root = Path(shutil.copytree(settings.dataset.removeprefix("local:"), tmp_path / "set"))
        (root / COMMIT_FILE).parent.mkdir()
        (root / COMMIT_FILE).write_text(40 * "a")
        downloaded = settings.model_copy(update={"dataset": f"local:{root}"})
        assert prepare_evaluation_set(downloaded, session).report.commit == 40 * "a"

    def test_too_few_episodes(self, session: Session) -> None:
        settings = session.evaluation_sets()[0].model_copy(update={"last_episodes": 4})
        with pytest.raises(EvaluationError, match=r"3 episodes, expected at least last_episodes = 4"):
            prepare_evaluation_set(settings, session)

    def test_one_that_breaks_the_contract_is_rejected(
        self, session: Session, record: Callable[..., Path], tmp_path: Path
    ) -> None:
        root = record(tmp_path / "one", 3, (8, 8), ("wrist",))
        with pytest.raises(DatasetError, match=r"may not take part: .*overhead"):
            prepare_evaluation_set(EvaluationSetSettings(dataset=f"local:{root}"), session)


class TestStart:
    def test_initial_weights_do_not_depend_on_earlier_use_of_the_policy(
        self, session: Session, start: tuple[Path, str], tmp_path: Path
    ) -> None:
        """As when a session resumes in the same process."""
        from zk0.weights.digests import load_weights
        from zk0.weights.writer import save_weights

        recipe, digest, size = build_start_policy(session, tmp_path / "start.safetensors")
        assert size == (tmp_path / "start.safetensors").stat().st_size
        other = {name: value + 1 for name, value in load_weights(tmp_path / "start.safetensors").items()}
        changed = save_weights(tmp_path / "changed.safetensors", other)[0]
        policy_with_weights(session, recipe, (tmp_path / "changed.safetensors", changed))
        assert build_start_policy(session, tmp_path / "again.safetensors") == (recipe, digest, size)

    def test_the_recipe_names_the_frozen_weights(self, session: Session, tmp_path: Path) -> None:
        recipe, _, _ = build_start_policy(session, tmp_path / "start.safetensors")
        assert len(str(recipe.frozen_digest)) == 64
        weights = (tmp_path / "start.safetensors", "0" * 64)
        with pytest.raises(CheckpointError, match="not the weights that were recorded"):
            policy_with_weights(session, recipe, weights)


class TestSessionSetup:
    def test_it_is_written_once_and_verified_afterwards(self, session_setup: SessionSetup, tmp_path: Path) -> None:
        session_setup.write_or_verify(tmp_path / "session_setup.json")
        before = (tmp_path / "session_setup.json").stat().st_mtime_ns
        session_setup.write_or_verify(tmp_path / "session_setup.json")
        assert (tmp_path / "session_setup.json").stat().st_mtime_ns == before
        assert SessionSetup.model_validate_json((tmp_path / "session_setup.json").read_text()) == session_setup

    def test_other_episodes_of_a_client(self, session_setup: SessionSetup, tmp_path: Path) -> None:
        session_setup.write_or_verify(tmp_path / "session_setup.json")
        first = session_setup.members[0].model_copy(update={"train_digests": ("0" * 64,)})
        with pytest.raises(DatasetError, match=r"a: not the episodes that this session began with"):
            session_setup.model_copy(update={"members": (first, session_setup.members[1])}).write_or_verify(
                tmp_path / "session_setup.json"
            )

    def test_other_evaluation_episodes_and_clients(self, session_setup: SessionSetup, tmp_path: Path) -> None:
        session_setup.write_or_verify(tmp_path / "session_setup.json")
        changed = session_setup.sets[0].model_copy(update={"digests": session_setup.sets[0].digests[1:]})
        with pytest.raises(DatasetError, match=r"b, local:.*evaluation: not the episodes"):
            session_setup.model_copy(update={"members": session_setup.members[:1], "sets": (changed,)}).write_or_verify(
                tmp_path / "session_setup.json"
            )

    def test_another_policy(self, session_setup: SessionSetup, tmp_path: Path) -> None:
        session_setup.write_or_verify(tmp_path / "session_setup.json")
        recipe = session_setup.recipe.model_copy(update={"frozen_digest": "0" * 64})
        with pytest.raises(PolicyError, match="not the policy that this session began with"):
            session_setup.model_copy(update={"recipe": recipe}).write_or_verify(tmp_path / "session_setup.json")


def test_weights_of_a_round_are_evaluated_and_saved(
    session: Session, session_setup: SessionSetup, tmp_path: Path
) -> None:
    """A saved policy, built again, gets the same scores."""
    from zk0.policy.trainable import trainable_weights
    from zk0.weights.digests import digest, load_weights
    from zk0.weights.writer import save_weights

    moved = {name: value * 1.1 for name, value in load_weights(tmp_path / "start.safetensors").items()}
    weights = (tmp_path / "moved.safetensors", save_weights(tmp_path / "moved.safetensors", moved)[0])
    evaluation = evaluate_weights(session, session_setup, weights, 1)
    again = evaluate_weights(session, session_setup, weights, 1)
    assert again.model_copy(update={"seconds": evaluation.seconds}) == evaluation
    assert evaluation.policy_loss == evaluation.sets[0].policy_loss
    assert (evaluation.round, evaluation.seed, evaluation.times, evaluation.normalization) == (1, 42, 2, "pooled")

    save_policy_checkpoint(session, session_setup, weights, tmp_path / "policy", {"README.md": "card"})
    assert executed(tmp_path / "policy") == 10, "what the policy declares"
    reference = read_policy_reference(str(tmp_path / "policy"))
    assert [camera.name for camera in reference.cameras] == ["overhead", "wrist"]
    assert (reference.joints, reference.units, reference.fps) == (session.contract.joints, "degrees", 10)
    assert reference.state == pool_moments([m.statistics for m in session_setup.members]).state
    reader = EpisodeReader(Path(session_setup.sets[0].root))
    starts = np.stack([episode.states[0] for episode in reader.read((0, 1, 2))])
    assert reference.start.min == pytest.approx(starts.min(0).tolist())
    first = reader.frames(reader.read((1,))[0], "wrist")[0].transpose(1, 2, 0)
    assert reference.cameras[1].pictures[1][:3] == tuple(first[:16, :16].mean((0, 1)).round().astype(int).tolist())
    assert "robot.json" in (tmp_path / "policy" / "SHA256SUMS").read_text()
    rollouts = session.rollout.model_copy(update={"tasks": ("lift-red",), "replan_steps": 4})
    rolled_out = session.model_copy(update={"rollout": rollouts})
    save_policy_checkpoint(rolled_out, session_setup, weights, tmp_path / "rolled-out", {})
    assert executed(tmp_path / "rolled-out") == 4, "what the session's attempts execute"
    saved = session.model_copy(update={"policy": session.policy.model_copy(update={"path": str(tmp_path / "policy")})})
    recipe, start, _ = build_start_policy(saved, tmp_path / "restart.safetensors")
    assert start == weights[1] == digest(trainable_weights(policy_with_weights(session, session_setup.recipe, weights)))
    assert recipe.frozen_digest == session_setup.recipe.frozen_digest
    restarted = session_setup.model_copy(update={"recipe": recipe})
    found = evaluate_weights(saved, restarted, (tmp_path / "restart.safetensors", start), 1)
    assert found.sets == evaluation.sets


def executed(folder: Path) -> int:
    return int(json.loads((folder / "config.json").read_text(encoding="utf-8"))["n_action_steps"])


def test_the_progress_of_computed_features_is_reported(
    session: Session, session_setup: SessionSetup, tmp_path: Path
) -> None:
    progress: list[tuple[str, int, int]] = []
    elsewhere = session.model_copy(update={"cache_dir": str(tmp_path / "cache")})
    weights = (tmp_path / "start.safetensors", build_start_policy(elsewhere, tmp_path / "start.safetensors")[1])
    for _ in range(2):
        evaluate_weights(elsewhere, session_setup, weights, 0, lambda *frames: progress.append(frames))
    name = session_setup.sets[0].dataset
    assert progress == [(name, 4, 12), (name, 7, 12), (name, 12, 12)], "every fourth frame is evaluated"

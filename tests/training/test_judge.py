"""The server's side: what a session stands on, its start, and the policy that it leaves behind."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from zk0.errors import CheckpointError, DatasetError, EvaluationError, PolicyError
from zk0.records import Statistics
from zk0.session import EvaluationSetSettings, Session, parse_session
from zk0.training.judge import (
    Ground,
    evaluate_weights,
    policy_with,
    prepare_evaluation_set,
    save_checkpoint,
    start_policy,
)


@pytest.fixture
def session(recordings: dict[str, Path], kept: Path) -> Session:
    clients = [{"name": n, "dataset": f"local:{recordings[n]}"} for n in "ab"]
    judge = {"dataset": f"local:{recordings['judge']}"}
    values = {"clients": clients, "evaluation": {"datasets": [judge], "times": 2}, "policy": {"path": "tiny"}}
    return parse_session(values | {"cache_dir": str(kept)}, "test")


@pytest.fixture
def ground(session: Session, statistics: Statistics, terms: Any, tmp_path: Path) -> Ground:
    from zk0.training.client import Client

    cache = Path(session.cache_dir)
    members = tuple(Client(c, terms, tmp_path / c.name, cache).join() for c in session.clients)
    sets = tuple(prepare_evaluation_set(s, session) for s in session.judges())
    recipe, _, _ = start_policy(session, tmp_path / "start.safetensors")
    return Ground(recipe=recipe, members=members, sets=sets, statistics=statistics)


class TestEvaluationSet:
    @pytest.mark.parametrize(("last", "episodes"), [(None, (0, 1, 2)), (1, (2,)), (3, (0, 1, 2))])
    def test_the_last_episodes_judge(self, session: Session, last: int | None, episodes: tuple[int, ...]) -> None:
        settings = session.judges()[0].model_copy(update={"last_episodes": last})
        found = prepare_evaluation_set(settings, session)
        assert found.split.held_out == episodes
        assert len(found.digests) == len(episodes)

    def test_too_few_episodes(self, session: Session) -> None:
        settings = session.judges()[0].model_copy(update={"last_episodes": 4})
        with pytest.raises(EvaluationError, match=r"3 episodes, expected at least last_episodes = 4"):
            prepare_evaluation_set(settings, session)

    def test_one_that_does_not_fit_may_not_judge(
        self, session: Session, record: Callable[..., Path], tmp_path: Path
    ) -> None:
        root = record(tmp_path / "one", 3, (8, 8), ("wrist",))
        with pytest.raises(DatasetError, match=r"may not take part: .*overhead"):
            prepare_evaluation_set(EvaluationSetSettings(dataset=f"local:{root}"), session)


class TestStart:
    def test_it_is_the_same_however_the_policy_was_used_meanwhile(
        self, session: Session, start: tuple[Path, str], tmp_path: Path
    ) -> None:
        """A session that is taken up again in the same process."""
        from zk0.weights import load_weights, save_weights

        recipe, digest, size = start_policy(session, tmp_path / "start.safetensors")
        assert size == (tmp_path / "start.safetensors").stat().st_size
        other = {name: value + 1 for name, value in load_weights(tmp_path / "start.safetensors").items()}
        changed = save_weights(tmp_path / "changed.safetensors", other)[0]
        policy_with(session, recipe, (tmp_path / "changed.safetensors", changed))
        assert start_policy(session, tmp_path / "again.safetensors") == (recipe, digest, size)

    def test_the_recipe_names_the_frozen_weights(self, session: Session, tmp_path: Path) -> None:
        recipe, _, _ = start_policy(session, tmp_path / "start.safetensors")
        assert len(str(recipe.frozen_digest)) == 64
        weights = (tmp_path / "start.safetensors", "0" * 64)
        with pytest.raises(CheckpointError, match="not the weights that were recorded"):
            policy_with(session, recipe, weights)


class TestGround:
    def test_it_is_written_once_and_found_unchanged(self, ground: Ground, tmp_path: Path) -> None:
        ground.keep(tmp_path / "ground.json")
        before = (tmp_path / "ground.json").stat().st_mtime_ns
        ground.keep(tmp_path / "ground.json")
        assert (tmp_path / "ground.json").stat().st_mtime_ns == before
        assert Ground.model_validate_json((tmp_path / "ground.json").read_text()) == ground

    def test_other_episodes_of_a_client(self, ground: Ground, tmp_path: Path) -> None:
        ground.keep(tmp_path / "ground.json")
        first = ground.members[0].model_copy(update={"train_digests": ("0" * 64,)})
        with pytest.raises(DatasetError, match=r"a: not the episodes that this session began with"):
            ground.model_copy(update={"members": (first, ground.members[1])}).keep(tmp_path / "ground.json")

    def test_other_judging_episodes_and_clients(self, ground: Ground, tmp_path: Path) -> None:
        ground.keep(tmp_path / "ground.json")
        judge = ground.sets[0].model_copy(update={"digests": ground.sets[0].digests[1:]})
        with pytest.raises(DatasetError, match=r"b, local:.*judge: not the episodes"):
            ground.model_copy(update={"members": ground.members[:1], "sets": (judge,)}).keep(tmp_path / "ground.json")

    def test_another_policy(self, ground: Ground, tmp_path: Path) -> None:
        ground.keep(tmp_path / "ground.json")
        recipe = ground.recipe.model_copy(update={"frozen_digest": "0" * 64})
        with pytest.raises(PolicyError, match="not the policy that this session began with"):
            ground.model_copy(update={"recipe": recipe}).keep(tmp_path / "ground.json")


def test_weights_of_a_round_are_judged_and_saved(session: Session, ground: Ground, tmp_path: Path) -> None:
    """A saved policy, built again, is judged with the very same numbers."""
    from zk0.robot.policy import trained_weights
    from zk0.weights import digest, load_weights, save_weights

    moved = {name: value * 1.1 for name, value in load_weights(tmp_path / "start.safetensors").items()}
    weights = (tmp_path / "moved.safetensors", save_weights(tmp_path / "moved.safetensors", moved)[0])
    judged = evaluate_weights(session, ground, weights, 1)
    again = evaluate_weights(session, ground, weights, 1)
    assert again.model_copy(update={"seconds": judged.seconds}) == judged
    assert judged.policy_loss == judged.sets[0].policy_loss
    assert (judged.round, judged.seed, judged.times, judged.normalization) == (1, 42, 2, "pooled")

    save_checkpoint(session, ground.recipe, ground.statistics, weights, tmp_path / "policy", {"README.md": "card"})
    saved = session.model_copy(update={"policy": session.policy.model_copy(update={"path": str(tmp_path / "policy")})})
    recipe, start, _ = start_policy(saved, tmp_path / "restart.safetensors")
    assert start == weights[1] == digest(trained_weights(policy_with(session, ground.recipe, weights)))
    assert recipe.frozen_digest == ground.recipe.frozen_digest
    restarted = ground.model_copy(update={"recipe": recipe})
    found = evaluate_weights(saved, restarted, (tmp_path / "restart.safetensors", start), 1)
    assert found.sets == judged.sets


def test_frames_whose_features_are_computed_are_told(session: Session, ground: Ground, tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    elsewhere = session.model_copy(update={"cache_dir": str(tmp_path / "cache")})
    weights = (tmp_path / "start.safetensors", start_policy(elsewhere, tmp_path / "start.safetensors")[1])
    for _ in range(2):
        evaluate_weights(elsewhere, ground, weights, 0, lambda *frames: told.append(frames))
    name = ground.sets[0].dataset
    assert told == [(name, 13, 42), (name, 25, 42), (name, 42, 42)]

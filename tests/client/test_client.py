"""What a client reports when it joins, its updates on its own disk, and its evaluations."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from zk0.errors import CheckpointError, DatasetError, EvaluationError, PolicyError
from zk0.records import Statistics
from zk0.settings.dataset_settings import ClientSettings, DataSettings
from zk0.settings.plans import EvaluationPlan, RoundPlan, SessionTerms


@pytest.fixture
def client_of(
    recordings: dict[str, Path], terms: SessionTerms, tmp_path: Path, shared_cache: Path
) -> Callable[..., Any]:
    from zk0.client.client import Client

    def make(name: str = "a", scratch: Path | None = None, **changes: Any) -> Any:
        settings = ClientSettings(name=name, **{"dataset": f"local:{recordings[name]}"} | changes)
        return Client(settings, terms, scratch or tmp_path / "scratch", shared_cache)

    return make


@pytest.fixture
def evaluation_plan(plan: Callable[..., RoundPlan]) -> Callable[..., EvaluationPlan]:
    """A plan to evaluate round 0 on the held-out episodes of client a."""

    def make(**changes: Any) -> EvaluationPlan:
        shared = plan().model_dump(include=EvaluationPlan.model_fields.keys() - {"round"})
        return EvaluationPlan(**shared | {"round": 0, "times": 2, "batch_size": 8, "every_frames": 1} | changes)

    return make


class TestJoin:
    def test_counts_and_moments_are_those_of_the_training_episodes(
        self, client_of: Callable[..., Any], recordings: dict[str, Path]
    ) -> None:
        import pyarrow.parquet as pq

        member = client_of().join()
        rows = pq.read_table(recordings["a"] / "data").to_pydict()
        trained = [i for i, e in enumerate(rows["episode_index"]) if e < 2]
        states = np.array([rows["observation.state"][i] for i in trained], np.float64)
        assert (member.split.train, member.split.held_out) == ((0, 1), (2,))
        assert member.train_frames == len(trained) == 27
        assert member.statistics.state.mean == pytest.approx(states.mean(0))
        assert member.statistics.state.std == pytest.approx(states.std(0))
        assert len(set(member.train_digests) | set(member.held_out_digests)) == 3

    def test_the_report_holds_no_path_and_no_frame(
        self, client_of: Callable[..., Any], recordings: dict[str, Path]
    ) -> None:
        member = client_of().join()
        assert member.report.root == ""
        sent = member.model_copy(update={"dataset": "", "report": member.report.model_copy(update={"dataset": ""})})
        assert str(recordings["a"].parent) not in sent.model_dump_json()
        assert len(sent.model_dump_json()) < 6000

    def test_a_dataset_that_breaks_the_contract_is_rejected_with_every_reason(
        self, client_of: Callable[..., Any], record: Callable[..., Path], tmp_path: Path
    ) -> None:
        root = record(tmp_path / "one", 3, (8, 8), ("top",))
        with pytest.raises(DatasetError, match=r"may not take part: .*overhead.*wrist") as found:
            client_of(dataset=f"local:{root}").join()
        assert "\n" not in str(found.value)

    def test_a_rename_map_satisfies_the_contract(
        self, client_of: Callable[..., Any], record: Callable[..., Path], tmp_path: Path
    ) -> None:
        root = record(tmp_path / "one", 3, (8, 8), ("top", "hand"))
        rename = {
            "observation.images.top": "observation.images.overhead",
            "observation.images.hand": "observation.images.wrist",
        }
        assert client_of(dataset=f"local:{root}", rename_map=rename).join().train_frames == 8


class TestTrain:
    def test_weights_other_than_the_plans_are_rejected(
        self, client_of: Callable[..., Any], start: tuple[Path, str], plan: Callable[..., RoundPlan]
    ) -> None:
        with pytest.raises(CheckpointError, match=r"digest [0-9a-f]{12}, expected 000000000000"):
            client_of().train(plan(global_digest="0" * 64), start[0])

    def test_a_policy_other_than_the_servers_is_rejected(
        self, client_of: Callable[..., Any], start: tuple[Path, str], plan: Callable[..., RoundPlan], recipe: Any
    ) -> None:
        other = recipe.model_copy(update={"frozen_digest": "0" * 64})
        with pytest.raises(PolicyError, match="server and client built different policies"):
            client_of().train(plan(recipe=other), start[0])

    def test_a_stored_update_is_returned_again_from_a_moved_folder(
        self, client_of: Callable[..., Any], start: tuple[Path, str], plan: Callable[..., RoundPlan], tmp_path: Path
    ) -> None:
        first = client_of().train(plan(), start[0])
        moved = Path(shutil.move(tmp_path / "scratch", tmp_path / "moved"))
        steps: list[int] = []
        again = client_of(scratch=moved).train(plan(), start[0], lambda step, *_: steps.append(step))
        assert steps == []
        assert again == first.model_copy(
            update={"path": str(moved / Path(first.path).relative_to(tmp_path / "scratch"))}
        )

    @pytest.mark.parametrize("damage", ["truncated", "missing"])
    def test_a_damaged_update_is_trained_again(
        self, client_of: Callable[..., Any], start: tuple[Path, str], plan: Callable[..., RoundPlan], damage: str
    ) -> None:
        first = client_of().train(plan(), start[0])
        if damage == "truncated":
            os.truncate(first.path, 5000)
        else:
            Path(first.path).unlink()
        steps: list[int] = []
        again = client_of().train(plan(), start[0], lambda step, *_: steps.append(step))
        assert steps == [1, 2, 3, 4]
        assert again.digest == first.digest

    def test_updates_of_old_rounds_are_removed(
        self, client_of: Callable[..., Any], start: tuple[Path, str], plan: Callable[..., RoundPlan], tmp_path: Path
    ) -> None:
        client = client_of()
        for number in (1, 2, 3):
            client.train(plan({"local_steps": 1}, round=number), start[0])
        (folder,) = (tmp_path / "scratch").glob("sessions/*/updates")
        (folder / ".round-001-half.safetensors.0a1b2c3d.tmp").touch()
        client.outbox.remove_before(plan(round=3))
        assert sorted(f.name[:9] for f in folder.iterdir()) == ["round-003", "round-003", "spare"]
        node = (folder / "spare").stat().st_ino
        last = client.train(plan({"local_steps": 1}, round=4), start[0])
        assert Path(last.path).stat().st_ino == node
        assert not (folder / "spare").exists()

    def test_without_pooled_statistics_the_clients_own_are_used(
        self, client_of: Callable[..., Any], start: tuple[Path, str], plan: Callable[..., RoundPlan]
    ) -> None:
        client = client_of("b")
        own = client.train(plan(client="b", statistics=None), start[0])
        same = client.train(plan(client="b", statistics=client.statistics), start[0])
        pooled = client.train(plan(client="b"), start[0])
        assert own.digest == same.digest != pooled.digest


class TestEvaluate:
    def test_scores_equal_those_that_the_server_would_compute(
        self,
        client_of: Callable[..., Any],
        start: tuple[Path, str],
        evaluation_plan: Callable[..., EvaluationPlan],
        policy: Any,
        recordings: dict[str, Path],
        shared_cache: Path,
        statistics: Statistics,
    ) -> None:
        from zk0.data.episode_reader import EpisodeReader
        from zk0.evaluation.scores import score_policy
        from zk0.policy.processors import make_processors
        from zk0.policy.trainable import install_weights
        from zk0.training.cached_examples import CachedExamples
        from zk0.training.feature_cache import FeatureCache
        from zk0.weights.digests import load_weights

        found = client_of().evaluate(evaluation_plan(), start[0])
        install_weights(policy, load_weights(*start))
        pre, _ = make_processors(policy, statistics)
        cache = FeatureCache(shared_cache / "features", policy, ("overhead", "wrist"))
        examples = CachedExamples(EpisodeReader(recordings["a"]), (2,), policy, pre, cache)
        dataset = f"local:{recordings['a']}"
        expected = score_policy(policy, examples, statistics, dataset=dataset, seed=42, times=2, batch_size=8)
        assert found.client == "a"
        assert found.score == expected
        assert [e.episode for e in found.score.episodes] == [2]

    def test_only_numbers_are_sent(
        self, client_of: Callable[..., Any], start: tuple[Path, str], evaluation_plan: Callable[..., EvaluationPlan]
    ) -> None:
        sent = client_of().evaluate(evaluation_plan(every_frames=5), start[0]).model_dump_json()
        assert len(sent) < 1500

    def test_without_pooled_statistics_the_clients_own_are_used(
        self, client_of: Callable[..., Any], start: tuple[Path, str], evaluation_plan: Callable[..., EvaluationPlan]
    ) -> None:
        client = client_of()
        own = client.evaluate(evaluation_plan(statistics=None), start[0])
        assert own == client.evaluate(evaluation_plan(statistics=client.statistics), start[0])
        assert own != client.evaluate(evaluation_plan(), start[0])

    def test_without_held_out_episodes_evaluation_fails(
        self,
        client_of: Callable[..., Any],
        start: tuple[Path, str],
        evaluation_plan: Callable[..., EvaluationPlan],
        terms: SessionTerms,
    ) -> None:
        client = client_of()
        client.terms = terms.model_copy(update={"data": DataSettings(holdout_episodes=0)})
        with pytest.raises(EvaluationError, match=r"a: no episode is held out"):
            client.evaluate(evaluation_plan(), start[0])


@pytest.mark.parametrize("field", [{"add_image_special_tokens": True}, {"empty_cameras": 1}, {"prefix_length": 150}])
def test_a_policy_whose_features_cannot_be_cached_trains_and_is_evaluated(
    client_of: Callable[..., Any],
    plan: Callable[..., RoundPlan],
    evaluation_plan: Callable[..., EvaluationPlan],
    policy: Any,
    statistics: Statistics,
    tmp_path: Path,
    field: dict[str, Any],
) -> None:
    """With `training.features = "off"` everything goes through the policy's own forward."""
    from zk0.policy.save_policy import save_policy
    from zk0.policy.trainable import trainable_weights
    from zk0.training.cached_policy import cached_policy
    from zk0.weights.writer import save_weights

    folder, start = tmp_path / "policy", tmp_path / "start.safetensors"
    save_policy(policy, statistics, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | field))
    recipe = plan().recipe.model_copy(update={"path": str(folder)})
    digest, _ = save_weights(start, trainable_weights(cached_policy(recipe, tmp_path, "cpu")[0]))
    changes = {"recipe": recipe, "global_digest": digest}
    client, off = client_of(), {"features": "off", "local_steps": 1, "batch_size": 2}
    with pytest.raises(PolicyError, match=r'set training\.features = "off"'):
        client.evaluate(evaluation_plan(**changes), start)
    update = client.train(plan(off, **changes), start)
    training = plan(off).training
    scores = [
        client.evaluate(evaluation_plan(**changes | {"global_digest": d}, training=training, every_frames=6), weights)
        for weights, d in ((start, digest), (Path(update.path), update.digest), (start, digest))
    ]
    assert scores[0] == scores[2]
    assert scores[0].score.policy_loss != scores[1].score.policy_loss

"""What a client says when it joins, and what it keeps on its own disk."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from zk0.errors import CheckpointError, DatasetError, EvaluationError, PolicyError
from zk0.records import Statistics
from zk0.session import ClientSettings, DataSettings, EvaluationPlan, RoundPlan, Terms


@pytest.fixture
def client_of(recordings: dict[str, Path], terms: Terms, tmp_path: Path, kept: Path) -> Callable[..., Any]:
    from zk0.training.client import Client

    def make(name: str = "a", scratch: Path | None = None, **changes: Any) -> Any:
        settings = ClientSettings(name=name, **{"dataset": f"local:{recordings[name]}"} | changes)
        return Client(settings, terms, scratch or tmp_path / "scratch", kept)

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

    def test_no_path_and_no_frame_leaves_the_machine(
        self, client_of: Callable[..., Any], recordings: dict[str, Path]
    ) -> None:
        member = client_of().join()
        assert member.report.root == ""
        said = member.model_copy(update={"dataset": "", "report": member.report.model_copy(update={"dataset": ""})})
        assert str(recordings["a"].parent) not in said.model_dump_json()
        assert len(said.model_dump_json()) < 6000

    def test_a_data_set_that_does_not_fit_is_refused_with_every_reason(
        self, client_of: Callable[..., Any], record: Callable[..., Path], tmp_path: Path
    ) -> None:
        root = record(tmp_path / "one", 3, (8, 8), ("top",))
        with pytest.raises(DatasetError, match=r"may not take part: .*overhead.*wrist") as found:
            client_of(dataset=f"local:{root}").join()
        assert "\n" not in str(found.value)

    def test_a_rename_map_makes_it_fit(
        self, client_of: Callable[..., Any], record: Callable[..., Path], tmp_path: Path
    ) -> None:
        root = record(tmp_path / "one", 3, (8, 8), ("top", "hand"))
        rename = {
            "observation.images.top": "observation.images.overhead",
            "observation.images.hand": "observation.images.wrist",
        }
        assert client_of(dataset=f"local:{root}", rename_map=rename).join().train_frames == 8


class TestTrain:
    def test_other_weights_than_the_plans_are_refused(
        self, client_of: Callable[..., Any], start: tuple[Path, str], plan: Callable[..., RoundPlan]
    ) -> None:
        with pytest.raises(CheckpointError, match=r"digest [0-9a-f]{12}, expected 000000000000"):
            client_of().train(plan(global_digest="0" * 64), start[0])

    def test_another_policy_than_the_servers_is_refused(
        self, client_of: Callable[..., Any], start: tuple[Path, str], plan: Callable[..., RoundPlan], recipe: Any
    ) -> None:
        other = recipe.model_copy(update={"frozen_digest": "0" * 64})
        with pytest.raises(PolicyError, match="server and client built different policies"):
            client_of().train(plan(recipe=other), start[0])

    def test_a_finished_update_is_answered_again_where_the_folder_is_now(
        self, client_of: Callable[..., Any], start: tuple[Path, str], plan: Callable[..., RoundPlan], tmp_path: Path
    ) -> None:
        first = client_of().train(plan(), start[0])
        moved = Path(shutil.move(tmp_path / "scratch", tmp_path / "moved"))
        steps: list[int] = []
        again = client_of(scratch=moved).train(plan(), start[0], lambda step, *_: steps.append(step))
        assert steps == []
        assert again == first.model_copy(update={"path": str(moved / "updates" / Path(first.path).name)})

    @pytest.mark.parametrize("damage", ["cut", "gone"])
    def test_a_damaged_one_is_trained_again(
        self, client_of: Callable[..., Any], start: tuple[Path, str], plan: Callable[..., RoundPlan], damage: str
    ) -> None:
        first = client_of().train(plan(), start[0])
        if damage == "cut":
            os.truncate(first.path, 5000)
        else:
            Path(first.path).unlink()
        steps: list[int] = []
        again = client_of().train(plan(), start[0], lambda step, *_: steps.append(step))
        assert steps == [1, 2, 3, 4]
        assert again.digest == first.digest

    def test_old_rounds_are_forgotten(
        self, client_of: Callable[..., Any], start: tuple[Path, str], plan: Callable[..., RoundPlan], tmp_path: Path
    ) -> None:
        client = client_of()
        for number in (1, 2, 3):
            client.train(plan({"local_steps": 1}, round=number), start[0])
        folder = tmp_path / "scratch" / "updates"
        (folder / ".round-001-half.safetensors.0a1b2c3d.tmp").touch()
        client.outbox.forget_before(3)
        assert sorted(f.name[:9] for f in folder.iterdir()) == ["round-003", "round-003", "spare"]
        node = (folder / "spare").stat().st_ino
        last = client.train(plan({"local_steps": 1}, round=4), start[0])
        assert Path(last.path).stat().st_ino == node
        assert not (folder / "spare").exists()

    def test_own_statistics_are_used_where_none_are_given(
        self, client_of: Callable[..., Any], start: tuple[Path, str], plan: Callable[..., RoundPlan]
    ) -> None:
        client = client_of("b")
        own = client.train(plan(client="b", statistics=None), start[0])
        same = client.train(plan(client="b", statistics=client.statistics), start[0])
        pooled = client.train(plan(client="b"), start[0])
        assert own.digest == same.digest != pooled.digest


class TestEvaluate:
    @pytest.fixture
    def asked(self, plan: Callable[..., RoundPlan]) -> Callable[..., EvaluationPlan]:
        """The plan of judging round 0 on what client a holds out."""

        def make(**changes: Any) -> EvaluationPlan:
            shared = plan().model_dump(exclude={"lr", "mu", "scheduler", "round", "control"})
            return EvaluationPlan(**shared | {"round": 0, "times": 2, "batch_size": 8, "every_frames": 1} | changes)

        return make

    def test_held_out_episodes_are_scored_as_the_server_would(
        self,
        client_of: Callable[..., Any],
        start: tuple[Path, str],
        asked: Callable[..., EvaluationPlan],
        policy: Any,
        recordings: dict[str, Path],
        kept: Path,
        statistics: Statistics,
    ) -> None:
        from zk0.robot.dataset import EpisodeReader
        from zk0.robot.policy import install_weights, make_processors
        from zk0.training.evaluate import score
        from zk0.training.examples import CachedExamples
        from zk0.training.features import FeatureCache
        from zk0.weights import load_weights

        found = client_of().evaluate(asked(), start[0])
        install_weights(policy, load_weights(*start))
        pre, _ = make_processors(policy, statistics)
        cache = FeatureCache(kept / "features", policy, ("overhead", "wrist"))
        examples = CachedExamples(EpisodeReader(recordings["a"]), (2,), policy, pre, cache)
        dataset = f"local:{recordings['a']}"
        wanted = score(policy, examples, statistics, dataset=dataset, seed=42, times=2, batch_size=8)
        assert found.client == "a"
        assert found.score == wanted
        assert [e.episode for e in found.score.episodes] == [2]

    def test_only_numbers_leave(
        self, client_of: Callable[..., Any], start: tuple[Path, str], asked: Callable[..., EvaluationPlan]
    ) -> None:
        said = client_of().evaluate(asked(every_frames=5), start[0]).model_dump_json()
        assert len(said) < 1500

    def test_own_statistics_are_used_where_none_are_given(
        self, client_of: Callable[..., Any], start: tuple[Path, str], asked: Callable[..., EvaluationPlan]
    ) -> None:
        client = client_of()
        own = client.evaluate(asked(statistics=None), start[0])
        assert own == client.evaluate(asked(statistics=client.statistics), start[0])
        assert own != client.evaluate(asked(), start[0])

    def test_nothing_held_out_gives_no_number(
        self,
        client_of: Callable[..., Any],
        start: tuple[Path, str],
        asked: Callable[..., EvaluationPlan],
        terms: Terms,
    ) -> None:
        client = client_of()
        client.terms = terms.model_copy(update={"data": DataSettings(holdout_episodes=0)})
        with pytest.raises(EvaluationError, match=r"a: no episode is held out"):
            client.evaluate(asked(), start[0])

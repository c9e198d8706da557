"""Differences between the federated model and its baselines, recomputed by hand."""

import numpy as np
import pytest
from scipy import stats

from zk0.errors import BenchmarkError, EvaluationError
from zk0.records import (
    Checkpoint,
    ClientEvaluation,
    ClientMetrics,
    ClientScore,
    EpisodeScore,
    Evaluation,
    Rollout,
    RoundRecord,
    SetScore,
    SummedUpdates,
    Update,
)
from zk0.stats.baseline_comparison import (
    SHARED_TASK,
    BaselineDifference,
    BenchmarkModel,
    TrainingBudget,
    baseline_differences,
    model_averages,
    samples_seen,
    training_budget,
)
from zk0.stats.intervals import crossed_mean, wilson_interval
from zk0.stats.model_comparison import ModelResults

SETTINGS = {"round": 1, "normalization": "pooled", "seed": 1, "times": 8, "seconds": 1.0}


def scored(dataset: str, losses: list[float]) -> SetScore:
    episodes = tuple(
        EpisodeScore(episode=i, frames=5, actions=10 + i, policy_loss=x, action_error_degrees=10 * x)
        for i, x in enumerate(losses)
    )
    return SetScore(
        dataset=dataset, episodes=episodes, frames=25, policy_loss=9, policy_loss_se=None,
        action_error_degrees=9, joint_error_degrees=(), horizon_error_degrees=(),
    )  # fmt: skip


def model(kind: str, seed: int, held: dict[str, list[float]], unseen: list[float], **more: object) -> BenchmarkModel:
    """Losses on held-out episodes (by client) and the unseen set; `successes` by (client, task), as digits 0 and 1."""
    rollouts = tuple(
        Rollout(
            round=1, checkpoint="d", task=task, client=client, seed=i, success=c == "1", steps=1, duration_seconds=1,
            fps=10, smoothness=None, conditions_digest="c",
        )
        for (client, task), text in more.pop("successes", {}).items() for i, c in enumerate(text)
    )  # fmt: skip
    results = ModelResults(
        label=kind,
        round=1,
        unseen=Evaluation(
            policy_loss=9, policy_loss_se=None, action_error_degrees=9, sets=(scored("sim:new", unseen),), **SETTINGS
        ),
        held_out=ClientEvaluation(
            scores=tuple(ClientScore(client=c, score=scored(f"sim:{c}", v)) for c, v in held.items()), **SETTINGS
        ),
        rollouts=rollouts,
        statistics="s",
    )
    budget = TrainingBudget(optimizer_steps=1, samples=1)
    return BenchmarkModel(kind=kind, seed=seed, budget=budget, results=results, **more)


def one_seed(seed: int, shift: float = 0.0) -> list[BenchmarkModel]:
    successes = {("a", "lift-a"): "11", ("b", "lift-b"): "10", (None, "new"): "01"}
    none = dict.fromkeys(successes, "00")
    own = none | {("a", "lift-a"): "11"}
    return [
        model("base", seed, {"a": [2.0, 2.2], "b": [3.0]}, [4.0, 4.4], successes=none),
        model("federated", seed, {"a": [1.0 + shift, 1.5], "b": [1.0]}, [2.0, 2.5], successes=successes),
        model("centralized", seed, {"a": [0.9, 1.0], "b": [0.8]}, [2.2, 2.4], successes=successes),
        model("local-only", seed, {"a": [0.5, 0.6], "b": [9.0]}, [5.0, 6.0], client="a", successes=own),
        model("local-only", seed, {"a": [7.0, 8.0], "b": [0.7]}, [3.0, 8.0], client="b", successes=none),
    ]


def find(rows: tuple[BaselineDifference, ...], metric: str, baseline: str, evaluated_on: str) -> BaselineDifference:
    (row,) = [r for r in rows if (r.metric, r.baseline, r.evaluated_on) == (metric, baseline, evaluated_on)]
    return row


def test_each_baseline_is_compared_on_its_units() -> None:
    rows = baseline_differences(one_seed(1))
    held_out = find(rows, "policy_loss", "base", "held out")
    assert (held_out.seeds, held_out.units) == (1, 3)
    assert (held_out.baseline_value, held_out.federated_value) == pytest.approx((7.2 / 3, 3.5 / 3))
    ends = stats.ttest_rel([1.0, 1.5, 1.0], [2.0, 2.2, 3.0]).confidence_interval(0.95)
    assert held_out.interval == pytest.approx((ends.low, ends.high))
    assert held_out.percent == pytest.approx(100 * (3.5 - 7.2) / 7.2)
    own = find(rows, "policy_loss", "local-only", "own")
    assert own.baseline_value == pytest.approx((0.5 + 0.6 + 0.7) / 3)
    others = find(rows, "policy_loss", "local-only", "others")
    assert others.baseline_value == pytest.approx((9.0 + 7.0 + 8.0) / 3)
    unseen = find(rows, "action_error", "local-only", "unseen")
    assert (unseen.baseline_value, unseen.units) == (pytest.approx(10 * (4.0 + 7.0) / 2), 2)
    successes = find(rows, "success_rate", "local-only", "own")
    assert (successes.baseline_value, successes.federated_value, successes.units) == (0.5, 0.75, 4)
    assert find(rows, "success_rate", "local-only", "others").baseline_value == 0.0
    assert find(rows, "success_rate", "centralized", "held out").interval is None, "no pair differs"


def test_intervals_are_over_seeds_and_episodes() -> None:
    models = [m for seed, shift in ((1, 0.0), (2, 0.4), (3, -0.2)) for m in one_seed(seed, shift)]
    row = find(baseline_differences(models), "policy_loss", "centralized", "held out")
    table = np.array([[0.1 + shift, 0.5, 0.2] for shift in (0.0, 0.4, -0.2)])
    assert (row.seeds, row.units, row.change) == (3, 3, pytest.approx(table.mean()))
    center = table.mean()
    seeds, episodes = table.mean(axis=1) - center, table.mean(axis=0) - center
    rest = table - center - seeds[:, None] - episodes
    squares = 3 * (seeds**2).sum() / 2, 3 * (episodes**2).sum() / 2, (rest**2).sum() / 4
    total = max(squares[0] + squares[1] - squares[2], squares[0], squares[1])
    dof = max(total**2 / (squares[0] ** 2 / 2 + squares[1] ** 2 / 2 + squares[2] ** 2 / 4), 2)
    half_width = stats.t.ppf(0.975, dof) * (total / 9) ** 0.5
    assert row.interval == pytest.approx((center - half_width, center + half_width))


def test_crossed_intervals_have_their_nominal_coverage() -> None:
    """At least 93 % of 400 intervals contain the true mean, 0, of tables with random seed, episode and rest effects."""
    rng, hits = np.random.default_rng(3), 0
    for _ in range(400):
        table = rng.normal(size=(4, 1)) + rng.normal(size=(1, 10)) + 0.5 * rng.normal(size=(4, 10))
        low, high = crossed_mean(table.tolist()).interval or (0.0, 0.0)
        hits += low <= 0 <= high
    assert 0.93 <= hits / 400 < 1


def test_one_column_or_one_row_is_an_ordinary_mean() -> None:
    assert crossed_mean([[1.0], [3.0]]) == crossed_mean([[1.0, 3.0]])
    assert crossed_mean([[1.0, 3.0]]).se == pytest.approx(1.0)
    assert crossed_mean([[1.0]]).interval is None


def test_a_shared_task_belongs_to_no_client() -> None:
    models = [
        model("federated", 1, {}, [], successes={(None, "lift"): "11", ("a", "push"): "01"}),
        model("local-only", 1, {}, [], client="a", successes={(None, "lift"): "00", ("a", "push"): "00"}),
        model("base", 1, {}, [], successes={(None, "lift"): "00", ("a", "push"): "00"}),
    ]
    rows = baseline_differences(models, shared_tasks={"lift"})
    assert find(rows, "success_rate", "local-only", "own").units == 2
    assert find(rows, "success_rate", "base", "held out").units == 4
    assert not [r for r in rows if r.evaluated_on in ("unseen", "others")]
    assert SHARED_TASK not in {r.subject for r in model_averages(models)}


def test_models_that_were_evaluated_differently_are_refused() -> None:
    models = one_seed(1)
    models[2] = model("centralized", 1, {"a": [1.0, 1.0]}, [1.0, 1.0])
    with pytest.raises(EvaluationError, match=r"centralized \(seed 1\) and the federated model were evaluated"):
        baseline_differences(models)
    fewer = [model(k, 2, {"a": [1.0]}, []) for k in ("base", "federated", "centralized")]
    with pytest.raises(EvaluationError, match="the seeds were not evaluated on the same"):
        baseline_differences([*one_seed(1), *fewer])


def test_averages_over_seeds() -> None:
    rows = model_averages([*one_seed(1), *one_seed(2, shift=1.0)])
    by = {(r.model, r.metric, r.subject): r for r in rows}
    names = list(dict.fromkeys(r.model for r in rows))
    assert names == ["base", "federated", "centralized", "a (local-only)", "b (local-only)"]
    assert by["federated", "policy_loss", "held out by a"].value == pytest.approx((1.0 + 1.5 + 2.0 + 1.5) / 4)
    assert by["b (local-only)", "policy_loss", "sim:new"].value == pytest.approx(5.5)
    lift = by["federated", "success_rate", "lift-b"]
    assert (lift.successes, lift.attempts, lift.seeds, lift.interval) == (2, 4, 2, wilson_interval(2, 4))


def test_the_training_budget_counts_short_last_batches() -> None:
    assert [samples_seen(steps, frames=10, batch_size=4) for steps in (0, 1, 3, 4)] == [0, 4, 10, 14]

    def update(client: str, frames: int, steps: int) -> Update:
        metrics = ClientMetrics(
            policy_loss=1, fedprox_loss=0, grad_norm=1, update_norm=1, local_steps=steps, lr_first=1,
            lr_last=1, seconds=1,
        )  # fmt: skip
        return Update(
            client=client, round=1, global_digest="", path="", digest="", bytes=1, examples=frames, dataset="x",
            metrics=metrics,
        )  # fmt: skip

    updates = (update("a", 10, 4), update("b", 100, 3))
    record = RoundRecord(
        round=1, checkpoint=Checkpoint(round=1, path="", digest="", bytes=1), updates=updates, seconds=1, finished_at=""
    )
    assert training_budget([record, record], 4) == TrainingBudget(optimizer_steps=14, samples=2 * (14 + 12))
    assert training_budget([record], 4, "a") == TrainingBudget(optimizer_steps=4, samples=14)


def test_a_sum_of_updates_has_no_training_budget() -> None:
    """Its steps are a mean, not those of a client."""
    summed = SummedUpdates(clients=("a", "b", "c"), roster="r", threshold=2, bits=16, step=1e-6, share=1.0)
    metrics = ClientMetrics(
        policy_loss=1, fedprox_loss=0, grad_norm=1, update_norm=1, local_steps=3, lr_first=1, lr_last=1, seconds=1
    )
    update = Update(
        client="secure-sum", round=1, global_digest="", path="", digest="", bytes=1, examples=9, dataset="x",
        metrics=metrics, summed=summed,
    )  # fmt: skip
    record = RoundRecord(
        round=1,
        checkpoint=Checkpoint(round=1, path="", digest="", bytes=1),
        updates=(update,),
        seconds=1,
        finished_at="",
    )
    with pytest.raises(BenchmarkError, match="round 1 has a sum of updates"):
        training_budget([record], 4)

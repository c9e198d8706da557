"""Federated against its baselines, recomputed by hand: who is compared on what, and over what the intervals go."""

import numpy as np
import pytest
from scipy import stats

from zk0.comparison import Measured
from zk0.contrast import SHARED, Contestant, Contrast, Work, averages, contrasts, samples_in, work_of
from zk0.errors import EvaluationError
from zk0.interval import crossed_mean, wilson
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
    Update,
)

WAY = {"round": 1, "normalization": "pooled", "seed": 1, "times": 8, "seconds": 1.0}


def scored(dataset: str, losses: list[float]) -> SetScore:
    episodes = tuple(
        EpisodeScore(episode=i, frames=5, actions=10 + i, policy_loss=x, action_error_degrees=10 * x)
        for i, x in enumerate(losses)
    )
    return SetScore(
        dataset=dataset, episodes=episodes, frames=25, policy_loss=9, policy_loss_se=None,
        action_error_degrees=9, joint_error_degrees=(), horizon_error_degrees=(),
    )  # fmt: skip


def model(kind: str, seed: int, held: dict[str, list[float]], unseen: list[float], **more: object) -> Contestant:
    """Losses of what each client holds out and of the unseen set; `won` by (client, task) as a string of 0 and 1."""
    rollouts = tuple(
        Rollout(
            round=1, checkpoint="d", task=task, client=client, seed=i, success=c == "1", steps=1, duration_seconds=1,
            fps=10, smoothness=None, conditions="c",
        )
        for (client, task), said in more.pop("won", {}).items() for i, c in enumerate(said)
    )  # fmt: skip
    measured = Measured(
        label=kind,
        round=1,
        unseen=Evaluation(
            policy_loss=9, policy_loss_se=None, action_error_degrees=9, sets=(scored("sim:new", unseen),), **WAY
        ),
        held_out=ClientEvaluation(
            scores=tuple(ClientScore(client=c, score=scored(f"sim:{c}", v)) for c, v in held.items()), **WAY
        ),
        rollouts=rollouts,
        statistics="s",
    )
    return Contestant(kind=kind, seed=seed, work=Work(steps=1, samples=1), measured=measured, **more)


def one_seed(seed: int, shift: float = 0.0) -> list[Contestant]:
    won = {("a", "lift-a"): "11", ("b", "lift-b"): "10", (None, "new"): "01"}
    none = dict.fromkeys(won, "00")
    return [
        model("base", seed, {"a": [2.0, 2.2], "b": [3.0]}, [4.0, 4.4], won=none),
        model("federated", seed, {"a": [1.0 + shift, 1.5], "b": [1.0]}, [2.0, 2.5], won=won),
        model("centralised", seed, {"a": [0.9, 1.0], "b": [0.8]}, [2.2, 2.4], won=won),
        model("alone", seed, {"a": [0.5, 0.6], "b": [9.0]}, [5.0, 6.0], client="a", won=none | {("a", "lift-a"): "11"}),
        model("alone", seed, {"a": [7.0, 8.0], "b": [0.7]}, [3.0, 8.0], client="b", won=none),
    ]


def found(rows: tuple[Contrast, ...], metric: str, against: str, where: str) -> Contrast:
    (row,) = [r for r in rows if (r.metric, r.against, r.where) == (metric, against, where)]
    return row


def test_each_is_compared_on_what_it_is_asked_about() -> None:
    rows = contrasts(one_seed(1))
    held_out = found(rows, "policy_loss", "base", "held out")
    assert (held_out.seeds, held_out.units) == (1, 3)
    assert (held_out.baseline, held_out.federated) == pytest.approx((7.2 / 3, 3.5 / 3))
    ends = stats.ttest_rel([1.0, 1.5, 1.0], [2.0, 2.2, 3.0]).confidence_interval(0.95)
    assert held_out.interval == pytest.approx((ends.low, ends.high))
    assert held_out.percent == pytest.approx(100 * (3.5 - 7.2) / 7.2)
    own = found(rows, "policy_loss", "alone", "own")
    assert own.baseline == pytest.approx((0.5 + 0.6 + 0.7) / 3)
    others = found(rows, "policy_loss", "alone", "others")
    assert others.baseline == pytest.approx((9.0 + 7.0 + 8.0) / 3)
    unseen = found(rows, "action_error", "alone", "unseen")
    assert (unseen.baseline, unseen.units) == (pytest.approx(10 * (4.0 + 7.0) / 2), 2)
    won = found(rows, "success_rate", "alone", "own")
    assert (won.baseline, won.federated, won.units) == (0.5, 0.75, 4)
    assert found(rows, "success_rate", "alone", "others").baseline == 0.0
    assert found(rows, "success_rate", "centralised", "held out").interval is None, "no pair differs"


def test_intervals_are_over_seeds_and_episodes() -> None:
    models = [m for seed, shift in ((1, 0.0), (2, 0.4), (3, -0.2)) for m in one_seed(seed, shift)]
    row = found(contrasts(models), "policy_loss", "centralised", "held out")
    table = np.array([[0.1 + shift, 0.5, 0.2] for shift in (0.0, 0.4, -0.2)])
    assert (row.seeds, row.units, row.change) == (3, 3, pytest.approx(table.mean()))
    centre = table.mean()
    seeds, episodes = table.mean(axis=1) - centre, table.mean(axis=0) - centre
    rest = table - centre - seeds[:, None] - episodes
    squares = 3 * (seeds**2).sum() / 2, 3 * (episodes**2).sum() / 2, (rest**2).sum() / 4
    total = max(squares[0] + squares[1] - squares[2], squares[0], squares[1])
    dof = max(total**2 / (squares[0] ** 2 / 2 + squares[1] ** 2 / 2 + squares[2] ** 2 / 4), 2)
    half = stats.t.ppf(0.975, dof) * (total / 9) ** 0.5
    assert row.interval == pytest.approx((centre - half, centre + half))


def test_crossed_intervals_cover_what_they_say() -> None:
    """Seeds, episodes and both together vary; at least 93 % of 400 intervals hold the true mean, 0."""
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


def test_a_task_of_two_clients_is_nobodys_own() -> None:
    models = [
        model("federated", 1, {}, [], won={(None, "lift"): "11", ("a", "push"): "01"}),
        model("alone", 1, {}, [], client="a", won={(None, "lift"): "00", ("a", "push"): "00"}),
        model("base", 1, {}, [], won={(None, "lift"): "00", ("a", "push"): "00"}),
    ]
    rows = contrasts(models, shared={"lift"})
    assert found(rows, "success_rate", "alone", "own").units == 2
    assert found(rows, "success_rate", "base", "held out").units == 4
    assert not [r for r in rows if r.where in ("unseen", "others")]
    assert SHARED not in {r.what for r in averages(models)}


def test_what_was_not_judged_on_the_same_is_refused() -> None:
    models = one_seed(1)
    models[2] = model("centralised", 1, {"a": [1.0, 1.0]}, [1.0, 1.0])
    with pytest.raises(EvaluationError, match=r"centralised \(seed 1\) was not judged on what the federated"):
        contrasts(models)
    fewer = [model(k, 2, {"a": [1.0]}, []) for k in ("base", "federated", "centralised")]
    with pytest.raises(EvaluationError, match="not every seed was judged on the same"):
        contrasts([*one_seed(1), *fewer])


def test_averages_over_seeds() -> None:
    rows = averages([*one_seed(1), *one_seed(2, shift=1.0)])
    by = {(r.model, r.metric, r.what): r for r in rows}
    assert list(dict.fromkeys(r.model for r in rows)) == ["base", "federated", "centralised", "a alone", "b alone"]
    assert by["federated", "policy_loss", "held out by a"].value == pytest.approx((1.0 + 1.5 + 2.0 + 1.5) / 4)
    assert by["b alone", "policy_loss", "sim:new"].value == pytest.approx(5.5)
    lift = by["federated", "success_rate", "lift-b"]
    assert (lift.successes, lift.attempts, lift.seeds, lift.interval) == (2, 4, 2, wilson(2, 4))


def test_work_is_counted_with_short_last_batches() -> None:
    assert [samples_in(steps, frames=10, batch_size=4) for steps in (0, 1, 3, 4)] == [0, 4, 10, 14]

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
    assert work_of([record, record], 4) == Work(steps=14, samples=2 * (14 + 12))
    assert work_of([record], 4, "a") == Work(steps=4, samples=14)

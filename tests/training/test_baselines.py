"""Baselines of a small federation: as many steps and samples, the same start, rates and judges; done by hand beside."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from zk0.comparison import read_measured
from zk0.contrast import Work, work_of
from zk0.errors import DatasetError
from zk0.folder import SessionFolder
from zk0.ledger import Ledger
from zk0.records import Checkpoint, Decision, RoundRecord
from zk0.session import EvaluationPlan, RoundPlan, Session, parse_session, terms_of

ROUNDS, STEPS, BATCH = 2, 4, 8
RATES = (1e-3, 5e-4)


@pytest.fixture(scope="module")
def session(recordings: dict[str, Path], kept: Path) -> Session:
    return parse_session(
        {
            "name": "two",
            "rounds": ROUNDS,
            "clients": [{"name": n, "dataset": f"local:{recordings[n]}"} for n in ("a", "b")],
            "policy": {"path": "tiny"},
            "training": {"local_steps": STEPS, "batch_size": BATCH},
            "evaluation": {"times": 2, "datasets": [{"dataset": f"local:{recordings['judge']}", "last_episodes": 2}]},
            "cache_dir": str(kept),
        },
        "test",
    )


@pytest.fixture(scope="module")
def source(session: Session, tmp_path_factory: pytest.TempPathFactory) -> SessionFolder:
    """A session that has run: its clients take part, in this process."""
    from zk0.aggregation.aggregate import aggregate
    from zk0.robot.statistics import pool
    from zk0.training.client import Client
    from zk0.training.judge import Ground, evaluate_weights, prepare_evaluation_set, start_policy

    here = SessionFolder(tmp_path_factory.mktemp("session"))
    here.create(session)
    terms = terms_of(session, here.name)
    clients = [Client(c, terms, here.path / c.name, Path(session.cache_dir)) for c in session.members()]
    members = tuple(c.join() for c in clients)
    here.round(0).mkdir()
    recipe, digest, size = start_policy(session, here.weights(0))
    sets = tuple(prepare_evaluation_set(s, session) for s in session.judges())
    statistics = pool([m.statistics for m in members])
    ground = Ground(recipe=recipe, members=members, sets=sets, statistics=statistics)
    ground.keep(here.ground)
    ledger, updates = Ledger(here.ledger), ()
    for number in range(ROUNDS + 1):
        decision = None
        if number:
            decision = Decision(round=number, lr=RATES[number - 1], mu=0.01, reason="as asked")
            plan = {
                "terms": terms, "round": number, "recipe": recipe, "global_digest": digest, "statistics": statistics,
                "training": session.training, "lr": decision.lr, "mu": 0.01, "scheduler": session.scheduler,
            }  # fmt: skip
            updates = tuple(c.train(RoundPlan(client=c.name, **plan), here.weights(number - 1)) for c in clients)
            here.round(number).mkdir()
            made = aggregate(updates, here.weights(number - 1), here.weights(number))
            digest, size = made.digest, made.bytes
        checkpoint = Checkpoint(round=number, path=here.relative(here.weights(number)), digest=digest, bytes=size)
        judged = evaluate_weights(session, ground, (here.weights(number), digest), number)
        ledger.append(
            RoundRecord(
                round=number,
                decision=decision,
                checkpoint=checkpoint,
                updates=updates,
                evaluation=judged,
                seconds=1,
                finished_at="",
            )
        )
    return here


def baseline(source: SessionFolder, folder: Path, **asked: Any) -> Any:
    from zk0.training.baselines import Baseline

    return Baseline(source, folder, **asked)


def test_alone_is_the_clients_own_training(source: SessionFolder, session: Session, tmp_path: Path) -> None:
    from zk0.training.client import Client

    (mine, _) = session.members()
    one = baseline(source, tmp_path / "alone", client="a")
    start, *history = one.carry_out()
    client = Client(mine, terms_of(session, source.name), tmp_path / "hand", Path(session.cache_dir))
    weights, digest = source.weights(0), start.checkpoint.digest
    told = {"recipe": one.ground.recipe, "statistics": one.ground.statistics, "training": session.training}
    told |= {"terms": client.terms, "client": "a"}
    for number, rate in enumerate(RATES, start=1):
        update = client.train(
            RoundPlan(**told, round=number, global_digest=digest, lr=rate, mu=0.0, scheduler=session.scheduler), weights
        )
        weights, digest = Path(update.path), update.digest
    assert [r.checkpoint.digest for r in history][-1] == digest
    assert work_of(history, BATCH) == work_of(one.federated, BATCH, client="a") == Work(steps=8, samples=2 * 27)

    plan = EvaluationPlan(**told, round=2, global_digest=digest, times=2, batch_size=32, every_frames=4)
    by_client = {s.client: s.score for s in history[-1].client_evaluation.scores}
    assert by_client["a"] == client.evaluate(plan, weights).score
    assert by_client.keys() == {"a", "b"}
    measured = read_measured(tmp_path / "alone")
    assert measured.unseen == history[-1].evaluation
    assert measured.statistics == read_measured(source.path).statistics


@pytest.mark.parametrize(("larger", "steps"), [(False, 16), (True, 8)])
def test_all_in_one_place(source: SessionFolder, tmp_path: Path, larger: bool, steps: int) -> None:
    one = baseline(source, tmp_path / "all", larger_batches=larger)
    history = one.carry_out()
    assert history[0].checkpoint.digest == one.federated[0].checkpoint.digest
    assert history[0].evaluation == one.federated[0].evaluation
    updates = [u for r in history for u in r.updates]
    assert sum(u.metrics.local_steps for u in updates) == steps
    assert [u.metrics.lr_first for u in updates] == pytest.approx(RATES)
    assert [u.metrics.fedprox_loss for u in updates] == [0.0, 0.0]
    assert {u.examples for u in updates} == {12 + 15 + 14}, "the frames that clients train on"
    assert history[-1].evaluation.policy_loss < history[0].evaluation.policy_loss


def test_an_interrupted_baseline_goes_on(source: SessionFolder, tmp_path: Path) -> None:
    calm = baseline(source, tmp_path / "calm").carry_out()
    cut = baseline(source, tmp_path / "cut")
    cut.folder.mkdir()
    ledger = Ledger(cut.folder / "ledger.jsonl")
    first = cut._begin(ledger)
    ledger.append(cut._round(first[-1].checkpoint, cut.federated[1]))
    for file in (cut.folder / "clients").rglob("*.safetensors"):
        file.unlink()  # round 1 is finished: nobody asks for its update again
    went_on = baseline(source, tmp_path / "cut").carry_out()
    assert [r.checkpoint.digest for r in went_on] == [r.checkpoint.digest for r in calm]
    again = baseline(source, tmp_path / "cut").carry_out()
    assert again == went_on


def test_other_episodes_than_the_federation_had(
    source: SessionFolder, recordings: dict[str, Path], tmp_path: Path
) -> None:
    one = baseline(source, tmp_path / "x", client="a")
    others = (one.session.clients[0].model_copy(update={"dataset": f"local:{recordings['c']}"}), one.session.clients[1])
    one.__dict__["session"] = one.session.model_copy(update={"clients": others})
    with pytest.raises(DatasetError, match=r"a: local:.* is not what the federation trained on"):
        one.carry_out()


def test_batches_are_even_and_pass_over_all() -> None:
    from zk0.training.baselines import even_batches

    batches = list(even_batches(frames=7, samples=20, steps=6, generator=torch.Generator().manual_seed(1)))
    assert sorted(map(len, batches)) == [3, 3, 3, 3, 4, 4]
    seen = [index for batch in batches for index in batch]
    assert [Counter(seen[at : at + 7]) for at in (0, 7)] == [Counter(range(7))] * 2


def test_the_loss_of_a_union_is_the_mean_over_its_actions(source: SessionFolder, tmp_path: Path) -> None:
    from zk0.training.baselines import Union
    from zk0.training.fit import noise_and_time
    from zk0.training.judge import policy_with

    one = baseline(source, tmp_path / "x")
    last = one.federated[-1]
    policy = policy_with(one.session, one.ground.recipe, (source.weights(2), last.checkpoint.digest))
    plan = one._plan("a", last.checkpoint, last.decision)
    first, second = parts = [c.examples(plan, policy) for c in one.clients.values()]
    union, indices = Union(parts), [26, 3, 30, 40, 28]  # 27 frames of a, then those of b; 26 and 40 end an episode
    noise, time = noise_and_time(5, policy, torch.Generator().manual_seed(0))
    squares, counted = 0.0, 0
    for k, index in enumerate(indices):
        part, own = (first, index) if index < 27 else (second, index - 27)
        squares += float(part.losses(policy, [own], noise[k : k + 1], time[k : k + 1]).detach().sum())
        counted += int((~part.padding[own]).sum())
    assert union.frames == 41
    assert float(union.loss(policy, indices, noise, time)) == pytest.approx(squares / (counted * 6), rel=1e-5)

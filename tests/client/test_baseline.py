"""Baselines of a small session against training by hand: the same start, rates, steps, samples and evaluation."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from zk0.audit.ledger import Ledger
from zk0.errors import DatasetError
from zk0.records import Checkpoint, RoundDecision, RoundRecord
from zk0.settings.loading import parse_session
from zk0.settings.plans import EvaluationPlan, RoundPlan, session_terms
from zk0.settings.session import Session
from zk0.stats.baseline_comparison import TrainingBudget, training_budget
from zk0.stats.model_comparison import read_model_results
from zk0.storage.session_folder import SessionFolder

ROUNDS, STEPS, BATCH = 2, 4, 8
RATES = (1e-3, 5e-4)


@pytest.fixture(scope="module")
def session(recordings: dict[str, Path], shared_cache: Path) -> Session:
    return parse_session(
        {
            "name": "two",
            "rounds": ROUNDS,
            "clients": [{"name": n, "dataset": f"local:{recordings[n]}"} for n in ("a", "b")],
            "policy": {"path": "tiny"},
            "training": {"local_steps": STEPS, "batch_size": BATCH},
            "evaluation": {
                "times": 2,
                "datasets": [{"dataset": f"local:{recordings['evaluation']}", "last_episodes": 2}],
            },
            "cache_dir": str(shared_cache),
        },
        "test",
    )


@pytest.fixture(scope="module")
def source(session: Session, tmp_path_factory: pytest.TempPathFactory) -> SessionFolder:
    """A finished session, whose clients trained in this process."""
    from zk0.aggregation.aggregate import aggregate
    from zk0.client.client import Client
    from zk0.data.statistics import pool_moments
    from zk0.evaluation.evaluation_sets import prepare_evaluation_set
    from zk0.evaluation.global_model import build_start_policy, evaluate_weights
    from zk0.evaluation.session_setup import SessionSetup

    here = SessionFolder(tmp_path_factory.mktemp("session"))
    here.create(session)
    terms = session_terms(session, here.name)
    clients = [Client(c, terms, here.path / c.name, Path(session.cache_dir)) for c in session.local_clients()]
    members = tuple(c.join() for c in clients)
    here.round_folder(0).mkdir()
    recipe, digest, size = build_start_policy(session, here.weights(0))
    sets = tuple(prepare_evaluation_set(s, session) for s in session.evaluation_sets())
    statistics = pool_moments([m.statistics for m in members])
    setup = SessionSetup(recipe=recipe, members=members, sets=sets, statistics=statistics)
    setup.write_or_verify(here.setup)
    ledger, updates = Ledger(here.ledger), ()
    for number in range(ROUNDS + 1):
        decision = None
        if number:
            decision = RoundDecision(round=number, lr=RATES[number - 1], mu=0.01, reason="fixed")
            plan = {
                "terms": terms, "round": number, "recipe": recipe, "global_digest": digest, "statistics": statistics,
                "training": session.training.local_settings(), "scheduler": session.scheduler, "lr": decision.lr,
                "mu": 0.01,
            }  # fmt: skip
            updates = tuple(c.train(RoundPlan(client=c.name, **plan), here.weights(number - 1)) for c in clients)
            here.round_folder(number).mkdir()
            mean = aggregate(updates, here.weights(number - 1), here.weights(number))
            digest, size = mean.digest, mean.bytes
        checkpoint = Checkpoint(round=number, path=here.relative(here.weights(number)), digest=digest, bytes=size)
        evaluation = evaluate_weights(session, setup, (here.weights(number), digest), number)
        ledger.append(
            RoundRecord(
                round=number,
                decision=decision,
                checkpoint=checkpoint,
                updates=updates,
                evaluation=evaluation,
                seconds=1,
                finished_at="",
            )
        )
    return here


def baseline(source: SessionFolder, folder: Path, **options: Any) -> Any:
    from zk0.client.baseline import Baseline

    return Baseline(source, folder, **options)


def test_local_only_equals_the_clients_own_training(source: SessionFolder, session: Session, tmp_path: Path) -> None:
    from zk0.client.client import Client

    (mine, _) = session.local_clients()
    one = baseline(source, tmp_path / "local", client="a")
    start, *history = one.run()
    client = Client(mine, session_terms(session, source.name), tmp_path / "hand", Path(session.cache_dir))
    weights, digest = source.weights(0), start.checkpoint.digest
    training = session.training.local_settings()
    fields = {"recipe": one.setup.recipe, "statistics": one.setup.statistics, "training": training}
    fields |= {"terms": client.terms, "client": "a"}
    for number, rate in enumerate(RATES, start=1):
        update = client.train(
            RoundPlan(**fields, round=number, global_digest=digest, lr=rate, mu=0.0, scheduler=session.scheduler),
            weights,
        )
        weights, digest = Path(update.path), update.digest
    assert [r.checkpoint.digest for r in history][-1] == digest
    assert (
        training_budget(history, BATCH)
        == training_budget(one.federated, BATCH, client="a")
        == TrainingBudget(optimizer_steps=8, samples=2 * 27)
    )

    plan = EvaluationPlan(**fields, round=2, global_digest=digest, times=2, batch_size=32, every_frames=4)
    by_client = {s.client: s.score for s in history[-1].client_evaluation.scores}
    assert by_client["a"] == client.evaluate(plan, weights).score
    assert by_client.keys() == {"a", "b"}
    measured = read_model_results(tmp_path / "local")
    assert measured.unseen == history[-1].evaluation
    assert measured.statistics == read_model_results(source.path).statistics


@pytest.mark.parametrize(("larger", "steps"), [(False, 16), (True, 8)])
def test_centralized_training(source: SessionFolder, tmp_path: Path, larger: bool, steps: int) -> None:
    one = baseline(source, tmp_path / "all", larger_batches=larger)
    history = one.run()
    assert history[0].checkpoint.digest == one.federated[0].checkpoint.digest
    assert history[0].evaluation == one.federated[0].evaluation
    updates = [u for r in history for u in r.updates]
    assert sum(u.metrics.local_steps for u in updates) == steps
    assert [u.metrics.lr_first for u in updates] == pytest.approx(RATES)
    assert [u.metrics.fedprox_loss for u in updates] == [0.0, 0.0]
    assert {u.examples for u in updates} == {12 + 15 + 14}, "the frames that clients train on"
    assert history[-1].evaluation.policy_loss < history[0].evaluation.policy_loss


def test_an_interrupted_baseline_resumes(source: SessionFolder, tmp_path: Path) -> None:
    uninterrupted = baseline(source, tmp_path / "whole").run()
    killed = baseline(source, tmp_path / "killed")
    killed.folder.mkdir()
    ledger = Ledger(killed.folder / "ledger.jsonl")
    first = killed._record_round_0(ledger)
    ledger.append(killed._round(first[-1].checkpoint, killed.federated[1]))
    for file in (killed.folder / "clients").rglob("*.safetensors"):
        file.unlink()  # round 1 is finished: its update is not needed again
    resumed = baseline(source, tmp_path / "killed").run()
    assert [r.checkpoint.digest for r in resumed] == [r.checkpoint.digest for r in uninterrupted]
    assert baseline(source, tmp_path / "killed").run() == resumed


def test_episodes_other_than_the_sessions_are_rejected(
    source: SessionFolder, recordings: dict[str, Path], tmp_path: Path
) -> None:
    one = baseline(source, tmp_path / "x", client="a")
    others = (one.session.clients[0].model_copy(update={"dataset": f"local:{recordings['c']}"}), one.session.clients[1])
    one.__dict__["session"] = one.session.model_copy(update={"clients": others})
    with pytest.raises(DatasetError, match=r"a: local:.* is not what the federation trained on"):
        one.run()


def test_batches_have_even_sizes_and_cover_all_frames() -> None:
    from zk0.training.batches import even_batches

    batches = list(even_batches(frames=7, samples=20, steps=6, generator=torch.Generator().manual_seed(1)))
    assert sorted(map(len, batches)) == [3, 3, 3, 3, 4, 4]
    order = [index for batch in batches for index in batch]
    assert [Counter(order[at : at + 7]) for at in (0, 7)] == [Counter(range(7))] * 2


def test_the_loss_of_pooled_examples_is_the_mean_over_their_actions(source: SessionFolder, tmp_path: Path) -> None:
    from zk0.client.pooled_examples import PooledExamples
    from zk0.evaluation.global_model import policy_with_weights
    from zk0.policy.smolvla.draws import draw_noise_and_time

    one = baseline(source, tmp_path / "x")
    last = one.federated[-1]
    policy = policy_with_weights(one.session, one.setup.recipe, (source.weights(2), last.checkpoint.digest))
    plan = one._round_plan("a", last.checkpoint, last.decision)
    first, second = parts = [c.training_examples(plan, policy) for c in one.clients.values()]
    pooled, indices = PooledExamples(parts), [26, 3, 30, 40, 28]  # a has 27 frames; 26 and 40 end an episode
    draws = draw_noise_and_time(5, policy, torch.Generator().manual_seed(0))
    squares, counted = 0.0, 0
    for k, index in enumerate(indices):
        part, own = (first, index) if index < 27 else (second, index - 27)
        of_one = {name: drawn[k : k + 1] for name, drawn in draws.items()}
        squares += float(part.elementwise_losses(policy, [own], of_one).detach().sum())
        counted += int((~part.padding[own]).sum())
    assert pooled.frames == 41
    assert float(pooled.loss(policy, indices, draws)) == pytest.approx(squares / (counted * 6), rel=1e-5)

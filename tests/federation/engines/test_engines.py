"""Every engine ends the same session with the same digest, and trains with the learning rate of the schedule."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from zk0.federation.protocol.membership import SilentJoinListener
from zk0.settings.session import Session
from zk0.weights.digests import load_weights

PERSONAL = ("model.action_out_proj.*", "model.vlm_with_expert.vlm.model.connector.*")
STEPS = {(c, r, s, 3) for c in "abc" for r in (1, 2) for s in (1, 2, 3)} | {(c, 3, 1, 1) for c in "abc"}


def train_with_boosted_lr(driven: Any, federation: Any) -> Any:
    """Train a third round of one step as the schedule decides it: AdamW's first step changes a weight by the lr."""
    from zk0.records import ClientMetrics, RoundRecord
    from zk0.rules.round_decision import client_lr, decide_round
    from zk0.settings.training_settings import SchedulerSettings

    scheduler = SchedulerSettings(adaptive_lr_enabled=True, type="reduce_on_plateau")
    training = driven.session.training.model_copy(update={"local_steps": 1, "lr": 3e-4})
    session = driven.session.model_copy(update={"scheduler": scheduler, "training": training})
    local = training.local_settings()
    last = driven.history[-1]
    rest = {"fedprox_loss": 0, "grad_norm": 1, "update_norm": 1, "local_steps": 1, "lr_first": 1, "lr_last": 1}
    losses = [ClientMetrics(policy_loss=loss, seconds=1, **rest) for loss in (1, 9, 1)]
    updates = tuple(u.model_copy(update={"metrics": m}) for u, m in zip(driven.updates, losses, strict=True))
    history = [RoundRecord(round=last.round, checkpoint=last, updates=updates, seconds=1, finished_at="")]
    decision = decide_round(session, history)
    assert decision.client_lr_factors == {"b": 1.15}
    plans = [
        plan.model_copy(update={"lr": client_lr(decision, plan.client), "training": local, "scheduler": scheduler})
        for plan in driven.plans(mu=0.0)
    ]
    found = federation.train(plans, Path(last.path), driven.spool())
    before = load_weights(Path(last.path))
    for update in found.updates:
        after = load_weights(Path(update.path))
        changes = np.concatenate([np.abs(after[n].astype(float) - before[n]).ravel() for n in before])
        assert np.quantile(changes, 0.9) == pytest.approx(3.45e-4 if update.client == "b" else 3e-4, rel=1e-3)
    return found.updates


def check_receipts(driven: Any, federation: Any, updates: Any) -> None:
    """Every client stores its receipts; a receipt of another client's update is refused by its client only."""
    from zk0.audit.merkle import client_receipts
    from zk0.records import RoundRecord

    record = RoundRecord(round=3, checkpoint=driven.history[-1], updates=updates, seconds=1, finished_at="")
    terms = driven.plans()[0].terms
    receipts = {name: client_receipts([record], name) for name in "abc"}
    assert [len(those) for those in receipts.values()] == [1, 1, 1]
    assert federation.send_receipts(terms, receipts) == ()
    stored = driven.folder / "clients" / "b" / "receipts" / "mini" / "round_3.json"
    assert receipts["b"][0].root in stored.read_text()
    stored.unlink()
    (refusal,) = federation.send_receipts(terms, {"b": client_receipts([record], "c")})
    assert refusal.client == "b"
    assert "does not show its update" in refusal.reason
    assert not stored.exists()


def check_sent_journals(folder: Path) -> None:
    """One signed line a message: its digests are those of the server's files, and it contains no path."""
    from zk0.audit.journal import SentJournal
    from zk0.records import Member, Update
    from zk0.weights.digests import digest

    for client in "abc":
        sent = SentJournal(folder / "clients" / client / "sent.jsonl").read()
        assert [(s.kind, s.round, s.to) for s in sent] == [
            ("join", None, "mini"),
            *(("train", number, "mini") for number in (1, 2)),
            ("train", 3, "mini"),
            *[("receipts", None, "mini")] * (2 if client == "b" else 1),
            ("evaluate", 2, "mini"),
        ]
        assert Member.model_validate_json(json.loads(sent[0].text)["member"]).client == client
        for line in (line for line in sent if line.kind == "train"):
            update = Update.model_validate_json(json.loads(line.text)["update"])
            weights = load_weights(folder / f"round-{line.round:03d}" / "updates" / f"{client}.safetensors")
            assert (line.weights.tensors, line.weights.values) == (len(weights), sum(w.size for w in weights.values()))
            assert line.weights.digest == update.digest == digest(weights)
        assert str(folder) not in "".join(s.model_dump_json() for s in sent)


def digests(session: Session, folder: Path, drive: type, on_step: Any = None) -> list[str]:
    """Run a session on an engine of its own, and return its digests."""
    from zk0.federation.open import open_federation

    with open_federation(session, "mini", folder, on_step) as federation:
        return digests_on(federation, drive(session, folder))


def digests_on(federation: Any, driven: Any) -> list[str]:
    """Run two rounds; return the digests of the start and of each round, and the clients' scores of the last one."""
    driven.begin(federation)
    for _ in range(2):
        collected = driven.train(federation)
        assert collected.refusals == ()
        assert [u.client for u in collected.updates] == ["a", "b", "c"]
        driven.average(collected.updates)
    driven.updates = collected.updates
    check_receipts(driven, federation, train_with_boosted_lr(driven, federation))
    scores = driven.evaluate(federation)
    assert scores.refusals == ()
    assert [s.client for s in scores.scores] == ["a", "b", "c"]
    return [*(checkpoint.digest for checkpoint in driven.history), *(s.model_dump_json() for s in scores.scores)]


class Steps(set[tuple[str, int, int, int]]):
    """The reported optimizer steps."""

    def listen(self, client: str, round_number: int, step: int, of: int, work: str) -> None:
        if work == "train":
            self.add((client, round_number, step, of))


@pytest.fixture(scope="module")
def in_this_process(
    session_of: Callable[..., Session], drive: type, tmp_path_factory: pytest.TempPathFactory
) -> list[str]:
    """Digests of the session in this process, without workers."""
    steps = Steps()
    found = digests(session_of(), tmp_path_factory.mktemp("here"), drive, steps.listen)
    assert steps == STEPS
    assert len(set(found)) == 6
    return found


def test_two_local_workers_end_with_the_same_digest(
    session_of: Callable[..., Session],
    drive: type,
    tmp_path: Path,
    in_this_process: list[str],
    my_workers: Callable[[], list[int]],
) -> None:
    from zk0.federation.open import open_federation

    steps, session = Steps(), session_of(federation={"workers": 2})
    driven = drive(session, tmp_path)
    with open_federation(session, "mini", tmp_path, steps.listen) as federation:
        assert digests_on(federation, driven) == in_this_process
        check_client_folders(tmp_path)
        check_clients_join_in_parallel(federation, driven.plans()[0].terms, my_workers)
    assert steps == STEPS
    logs = [(tmp_path / f"server/worker-{i}.log").read_text() for i in (0, 1)]
    assert sum(log.count("step 3/3") for log in logs) == 6


def check_clients_join_in_parallel(federation: Any, terms: Any, my_workers: Callable[[], list[int]]) -> None:
    """One of two workers stops while its client joins; the other clients join all the same, before it goes on."""
    _fork_server, stopped, _ = sorted(my_workers())  # the fork server is the oldest
    events = list[str]()

    class Answers(SilentJoinListener):
        def on_join_answer(self, node: int, client: str, steps: Any, problem: str) -> None:
            events.append(client)
            if len(events) == 2:
                events.append("continued")
                os.kill(stopped, signal.SIGCONT)

    os.kill(stopped, signal.SIGSTOP)
    try:
        members = federation.join(terms, listener=Answers())
    finally:
        os.kill(stopped, signal.SIGCONT)
    assert [m.client for m in members] == ["a", "b", "c"]
    assert events.index("continued") == 2
    assert sorted(events) == ["a", "b", "c", "continued"]


def test_ray_ends_with_the_same_digest(
    ray_engine: Any, nodes_of: Callable, drive: type, tmp_path: Path, in_this_process: list[str]
) -> None:
    from zk0.federation.protocol.collect import Federation

    steps, nodes = Steps(), tmp_path / "nodes.json"
    nodes.write_text(json.dumps(nodes_of(ray_engine.session, tmp_path)))
    ray_engine.listeners.append(steps.listen)
    found = digests_on(Federation(ray_engine.grid, "abc", 240, nodes), drive(ray_engine.session, tmp_path))
    ray_engine.listeners.remove(steps.listen)
    assert found == in_this_process
    assert steps == STEPS
    check_client_folders(tmp_path)


@pytest.fixture(scope="module", params=["act", "all", "personal"])
def other_session(request: pytest.FixtureRequest, session_of: Callable[..., Session]) -> Session:
    """A session that decodes its frames in each step.

    act: a policy that draws from torch's global random state; all: SmolVLA with its vision-language model; personal:
    each client keeps a part of it.
    """
    training = {"local_steps": 2, "batch_size": 4, "features": "off", "lr": 1e-4}
    if request.param == "act":
        return session_of(policy={"path": "tiny-act"}, training=training)
    personal = {"personal": PERSONAL} if request.param == "personal" else {}
    return session_of(training=training | {"scope": "all"} | personal)


@pytest.fixture(scope="module")
def other_in_this_process(other_session: Session, drive: type, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Digests and scores of the session in this process."""
    from zk0.federation.open import open_federation

    folder = tmp_path_factory.mktemp("other")
    with open_federation(other_session, "mini", folder) as federation:
        return other_digests_on(federation, drive(other_session, folder))


def other_digests_on(federation: Any, driven: Any) -> list[str]:
    driven.begin(federation)
    is_act = driven.session.policy.path == "tiny-act"
    assert (driven.recipe.type, driven.recipe.trained) == (("act", ()) if is_act else ("smolvla", ("*",)))
    for _ in range(2):
        collected = driven.train(federation)
        assert [refusal.reason for refusal in collected.refusals] == []
        driven.average(collected.updates)
    scores = driven.evaluate(federation, every_frames=6).scores
    assert len(scores) == 3
    personal = bool(driven.recipe.personal)
    assert [score.personal is not None for score in scores] == [personal] * 3
    assert all(score.personal != score.score for score in scores)
    assert ("model.action_out_proj.bias" in load_weights(Path(driven.history[-1].path))) is not (personal or is_act)
    return [*(checkpoint.digest for checkpoint in driven.history), *(s.model_dump_json() for s in scores)]


def test_ray_trains_another_session_to_the_same_digest(
    other_session: Session,
    other_in_this_process: list[str],
    ray_engine: Any,
    nodes_of: Callable,
    drive: type,
    tmp_path: Path,
) -> None:
    from zk0.federation.protocol.collect import Federation

    nodes = tmp_path / "nodes.json"
    nodes.write_text(json.dumps(nodes_of(other_session, tmp_path)))
    found = other_digests_on(Federation(ray_engine.grid, "abc", 240, nodes), drive(other_session, tmp_path))
    assert found == other_in_this_process
    assert len(set(found)) == 6


@pytest.mark.slow
def test_two_local_workers_train_another_session_to_the_same_digest(
    other_session: Session, other_in_this_process: list[str], drive: type, tmp_path: Path
) -> None:
    from zk0.federation.open import open_federation

    workers = other_session.federation.model_copy(update={"workers": 2})
    parallel = other_session.model_copy(update={"federation": workers})
    with open_federation(parallel, "mini", tmp_path) as federation:
        assert other_digests_on(federation, drive(parallel, tmp_path)) == other_in_this_process


def check_client_folders(folder: Path) -> None:
    """Journals, logs and files of every client."""
    check_sent_journals(folder)
    for client in "abc":
        log = (folder / f"clients/{client}/client.log").read_text()
        assert log.count(f"{client}: round 2 step 3/3") == 1
        assert {line.split(" - ")[1].split(":")[0] for line in log.splitlines()} == {client}
        assert sorted(p.name for p in (folder / f"clients/{client}").glob("round_*.json")) == [
            "round_1.json",
            "round_2.json",
            "round_3.json",
        ]
        assert not list((folder / f"clients/{client}").glob("sessions/*"))  # the receipts have come


def test_the_order_of_clients_changes_no_bit(
    session_of: Callable[..., Session], drive: type, tmp_path: Path, in_this_process: list[str]
) -> None:
    assert digests(session_of(("c", "a", "b")), tmp_path, drive) == in_this_process


def test_an_answer_that_cannot_be_recorded_is_not_sent(
    session_of: Callable[..., Session], drive: type, tmp_path: Path
) -> None:
    from zk0.audit.journal import SentJournal
    from zk0.federation.open import open_federation

    driven = drive(session_of(("a", "b")), tmp_path)
    with open_federation(driven.session, "mini", tmp_path) as federation:
        driven.begin(federation)
        (tmp_path / "clients/a/sent.key").write_bytes(b"short")
        found = driven.train(federation)
        assert [u.client for u in found.updates] == ["b"]
        assert "its answer was not sent; its journal could not be written" in found.refusals[0].reason
        refused = driven.plans()[1].model_copy(update={"global_digest": "0" * 64, "round": 2})
        found = federation.train([refused], Path(driven.history[-1].path), tmp_path / "round-002" / "updates")
        assert "expected 000000000000" in found.refusals[0].reason
    last = SentJournal(tmp_path / "clients/b/sent.jsonl").read()[-1]
    assert (last.kind, last.round, last.weights) == ("train", 2, None)
    assert "expected 000000000000" in last.text


def test_only_shared_joining_reports_are_sent(
    session_of: Callable[..., Session], drive: type, tmp_path: Path, recordings: dict[str, Path]
) -> None:
    from zk0.audit.journal import SentJournal
    from zk0.federation.open import open_federation
    from zk0.settings.plans import JoiningReportPlan

    clients = [
        {"name": n, "dataset": f"local:{recordings[n]}", "share_joining_report": n == "a"} for n in ("a", "b", "c")
    ]
    driven = drive(session_of(clients=clients, training={"local_steps": 1}), tmp_path)
    with open_federation(driven.session, "mini", tmp_path) as federation:
        driven.begin(federation)
        settings = {
            "times": 1,
            "batch_size": 32,
            "every_frames": 20,
            "lrs": (1e-3,),
            "scheduler": driven.session.scheduler,
        }
        plans = [
            JoiningReportPlan(**{k: v for k, v in dict(plan).items() if k in JoiningReportPlan.model_fields} | settings)
            for plan in driven.plans()
        ]
        wrong = plans[2].model_copy(update={"global_digest": "0" * 64})
        start = Path(driven.history[0].path)
        found, refused = federation.collect_joining_reports(([*plans[:2], wrong], plans), start, start)
    assert [r.client for r in refused] == ["c"]
    assert found.keys() == {"a", "b"}
    assert json.loads(found["a"])["client"] == "a"
    assert found["b"] == ""
    assert (tmp_path / "clients/b/joining.md").is_file()
    sent = SentJournal(tmp_path / "clients/b/sent.jsonl").read()
    assert [s.kind for s in sent] == ["join", "local_baseline", "joining_report"]
    assert "policy_loss" not in sent[-1].text


def test_an_audit_finds_receipts_and_tampering(session_of: Callable[..., Session], drive: type, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from flows.bot.main import zk0bot_app
    from zk0.audit.merkle import client_receipts
    from zk0.federation.open import open_federation
    from zk0.federation.protocol.receipts import audited_messages
    from zk0.records import RoundRecord

    driven = drive(session_of(("a", "b"), training={"local_steps": 1}), tmp_path)
    scratch = tmp_path / "clients" / "a"
    with open_federation(driven.session, "mini", tmp_path) as federation:
        driven.begin(federation)
        updates = driven.train(federation).updates
        assert [one.receipt for one in audited_messages(scratch)] == [None, None]
        record = RoundRecord(round=1, checkpoint=driven.history[0], updates=updates, seconds=1, finished_at="")
        terms = driven.plans()[0].terms
        assert federation.send_receipts(terms, {"a": client_receipts([record], "a")}) == ()
        outside = terms.model_copy(update={"session": "../mini"})
        (refusal,) = federation.send_receipts(outside, {"a": client_receipts([record], "a")})
        assert "is not a valid name of a session" in refusal.reason
    found = audited_messages(scratch)
    assert [one.sent.kind for one in found] == ["join", "train", "receipts", "receipts"]
    assert found[1].receipt == client_receipts([record], "a")[0]
    assert found[1].update == updates[0].model_copy(update={"path": found[1].update.path})
    result = CliRunner().invoke(zk0bot_app, ["client", "audit", "--folder", str(scratch)], env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    assert "the server lists 1 of 1 updates, 0 of them" in " ".join(result.output.split())
    assert updates[0].digest[:8] in result.output
    lines = CliRunner().invoke(zk0bot_app, ["client", "audit", "--folder", str(scratch), "--json"]).output.splitlines()
    assert [json.loads(line)["sent"]["kind"] for line in lines] == [one.sent.kind for one in found]
    journal = scratch / "sent.jsonl"
    journal.write_text(journal.read_text().replace('"round":1', '"round":2'))
    result = CliRunner().invoke(zk0bot_app, ["client", "audit", "--folder", str(scratch)])
    assert result.exit_code == 1
    assert "line 2: not signed" in result.output


def test_computed_features_are_reported(session_of: Callable[..., Session], drive: type, tmp_path: Path) -> None:
    reported: list[tuple[Any, ...]] = []
    session = session_of(("a", "b"), cache_dir=str(tmp_path / "cache"), training={"features": "kv"})
    from zk0.federation.open import open_federation

    driven = drive(session, tmp_path / "here")
    with open_federation(session, "mini", tmp_path / "here", lambda *step: reported.append(step)) as federation:
        driven.begin(federation)
        driven.train(federation)
    frames = [step for step in reported if step[4] == "encode"]
    assert frames == [("a", 1, 12, 27, "encode"), ("a", 1, 27, 27, "encode"), ("b", 1, 14, 14, "encode")]
    log = (tmp_path / "here/clients/a/client.log").read_text()
    assert log.index("features of 27/27 frames computed") < log.index("step 1/3")


def test_features_are_computed_before_the_first_round(
    session_of: Callable[..., Session], drive: type, tmp_path: Path
) -> None:
    from zk0.federation.open import open_federation

    reported: list[tuple[Any, ...]] = []
    session = session_of(("a", "b"), cache_dir=str(tmp_path / "cache"))
    driven = drive(session, tmp_path / "here")
    with open_federation(session, "mini", tmp_path / "here", lambda *step: reported.append(step)) as federation:
        driven.begin(federation)
        assert driven.compute_features(federation) == ()
        computed = {step[:4] for step in reported if step[4] == "encode"}
        assert {(client, done) for client, _, done, frames in computed if done == frames} >= {("a", 27), ("b", 14)}
        assert {step[1] for step in reported} == {0}
        reported.clear()
        driven.train(federation)
        driven.evaluate(federation)
        assert {step[4] for step in reported} == {"train"}
        other = driven.recipe.model_copy(update={"frozen_digest": "0" * 64})
        refusals = driven.compute_features(federation, recipe=other)
        assert [refusal.client for refusal in refusals] == ["a", "b"]
        assert "server and client built different policies" in refusals[0].reason

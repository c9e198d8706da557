"""The keystone: every engine ends the same session with the same digest, and trains with the lr that was decided."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from zk0.session import Session
from zk0.weights import load_weights

STEPS = {(c, r, s, 3) for c in "abc" for r in (1, 2) for s in (1, 2, 3)} | {(c, 3, 1, 1) for c in "abc"}


def lagging_client_is_boosted(driven: Any, federation: Any) -> Any:
    """A third round of one step, as the schedule decides it: AdamW's first step moves a weight by its lr."""
    from zk0.records import ClientMetrics, RoundRecord
    from zk0.schedule import client_lr, decide
    from zk0.session import SchedulerSettings

    scheduler = SchedulerSettings(adaptive_lr_enabled=True, type="reduce_on_plateau")
    training = driven.session.training.model_copy(update={"local_steps": 1, "lr": 3e-4})
    session = driven.session.model_copy(update={"scheduler": scheduler, "training": training})
    last = driven.history[-1]
    rest = {"fedprox_loss": 0, "grad_norm": 1, "update_norm": 1, "local_steps": 1, "lr_first": 1, "lr_last": 1}
    losses = [ClientMetrics(policy_loss=loss, seconds=1, **rest) for loss in (1, 9, 1)]
    updates = tuple(u.model_copy(update={"metrics": m}) for u, m in zip(driven.updates, losses, strict=True))
    history = [RoundRecord(round=last.round, checkpoint=last, updates=updates, seconds=1, finished_at="")]
    decision = decide(session, history)
    assert decision.client_lr_factors == {"b": 1.15}
    plans = [
        plan.model_copy(update={"lr": client_lr(decision, plan.client), "training": training, "scheduler": scheduler})
        for plan in driven.plans(mu=0.0)
    ]
    found = federation.train(plans, Path(last.path), driven.spool())
    before = load_weights(Path(last.path))
    for update in found.updates:
        after = load_weights(Path(update.path))
        moved = np.concatenate([np.abs(after[n].astype(float) - before[n]).ravel() for n in before])
        assert np.quantile(moved, 0.9) == pytest.approx(3.45e-4 if update.client == "b" else 3e-4, rel=1e-3)
    return found.updates


def receipts_prove_what_was_sent(driven: Any, federation: Any, updates: Any) -> None:
    """Right receipts are kept by every client; one over another update is refused by its client alone."""
    from zk0.merkle import receipts
    from zk0.records import RoundRecord

    record = RoundRecord(round=3, checkpoint=driven.history[-1], updates=updates, seconds=1, finished_at="")
    terms = driven.plans()[0].terms
    told = {name: receipts([record], name) for name in "abc"}
    assert [len(those) for those in told.values()] == [1, 1, 1]
    assert federation.give_receipts(terms, told) == ()
    client = driven.folder / "clients" / "b" / "receipts" / "mini" / "round_3.json"
    assert told["b"][0].root in client.read_text()
    client.unlink()
    (refusal,) = federation.give_receipts(terms, {"b": receipts([record], "c")})
    assert refusal.client == "b"
    assert "does not prove" in refusal.reason
    assert not client.exists()


def everything_sent_is_noted(folder: Path) -> None:
    """One signed line for the join and one a round; what it says is what the server kept, and no path is in it."""
    from zk0.journal import Journal
    from zk0.records import Member, Update
    from zk0.weights import digest

    for client in "abc":
        sent = Journal(folder / "clients" / client / "sent.jsonl").read()
        assert [(s.kind, s.round, s.to) for s in sent] == [
            ("join", None, "mini"),
            *(("train", number, "mini") for number in (1, 2)),
            ("train", 3, "mini"),
            *[("receipts", None, "mini")] * (2 if client == "b" else 1),
            ("evaluate", 2, "mini"),
        ]
        assert Member.model_validate_json(json.loads(sent[0].text)["member"]).client == client
        for line in (line for line in sent if line.kind == "train"):
            said = Update.model_validate_json(json.loads(line.text)["update"])
            kept = load_weights(folder / f"round-{line.round:03d}" / "updates" / f"{client}.safetensors")
            assert (line.weights.tensors, line.weights.values) == (len(kept), sum(w.size for w in kept.values()))
            assert line.weights.digest == said.digest == digest(kept)
        assert str(folder) not in "".join(s.model_dump_json() for s in sent)


def digests(session: Session, folder: Path, drive: type, on_step: Any = None) -> list[str]:
    """Of a session on an engine of its own."""
    from zk0.federation.open import open_federation

    with open_federation(session, "mini", folder, on_step) as federation:
        return digests_on(federation, drive(session, folder))


def digests_on(federation: Any, driven: Any) -> list[str]:
    """Two rounds; the digest of the start and of each round, and what the clients say of the last one."""
    driven.begin(federation)
    for _ in range(2):
        collected = driven.train(federation)
        assert collected.refusals == ()
        assert [u.client for u in collected.updates] == ["a", "b", "c"]
        driven.average(collected.updates)
    driven.updates = collected.updates
    receipts_prove_what_was_sent(driven, federation, lagging_client_is_boosted(driven, federation))
    judged = driven.evaluate(federation)
    assert judged.refusals == ()
    assert [s.client for s in judged.scores] == ["a", "b", "c"]
    return [*(checkpoint.digest for checkpoint in driven.history), *(s.model_dump_json() for s in judged.scores)]


class Steps(set[tuple[str, int, int, int]]):
    """Optimizer steps that were told."""

    def listen(self, client: str, round_number: int, step: int, of: int, work: str) -> None:
        if work == "train":
            self.add((client, round_number, step, of))


@pytest.fixture(scope="module")
def in_this_process(
    session_of: Callable[..., Session], drive: type, tmp_path_factory: pytest.TempPathFactory
) -> list[str]:
    """Digests of the session without any engine's processes."""
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
    steps, session = Steps(), session_of(federation={"workers": 2})
    assert digests(session, tmp_path, drive, steps.listen) == in_this_process
    assert steps == STEPS
    logs = [(tmp_path / f"server/worker-{i}.log").read_text() for i in (0, 1)]
    assert sum(log.count("step 3/3") for log in logs) == 6
    all_is_there(tmp_path)


def test_ray_ends_with_the_same_digest(
    ray_engine: Any, nodes_of: Callable, drive: type, tmp_path: Path, in_this_process: list[str]
) -> None:
    from zk0.federation.collect import Federation

    steps, nodes = Steps(), tmp_path / "nodes.json"
    nodes.write_text(json.dumps(nodes_of(ray_engine.session, tmp_path)))
    ray_engine.listeners.append(steps.listen)
    found = digests_on(Federation(ray_engine.grid, "abc", 240, nodes), drive(ray_engine.session, tmp_path))
    ray_engine.listeners.remove(steps.listen)
    assert found == in_this_process
    assert steps == STEPS
    all_is_there(tmp_path)


def all_is_there(folder: Path) -> None:
    """What clients leave behind."""
    everything_sent_is_noted(folder)
    for client in "abc":
        log = (folder / f"clients/{client}/client.log").read_text()
        assert log.count(f"{client}: round 2 step 3/3") == 1
        assert {line.split(" - ")[1].split(":")[0] for line in log.splitlines()} == {client}
        assert sorted(p.name for p in (folder / f"clients/{client}").glob("round_*.json")) == [
            "round_1.json",
            "round_2.json",
            "round_3.json",
        ]
        assert len(list((folder / f"clients/{client}/updates").glob("*.safetensors"))) == 1


def test_the_order_of_clients_changes_no_bit(
    session_of: Callable[..., Session], drive: type, tmp_path: Path, in_this_process: list[str]
) -> None:
    assert digests(session_of(("c", "a", "b")), tmp_path, drive) == in_this_process


def test_an_answer_that_cannot_be_noted_does_not_leave(
    session_of: Callable[..., Session], drive: type, tmp_path: Path
) -> None:
    from zk0.federation.open import open_federation
    from zk0.journal import Journal

    driven = drive(session_of(("a", "b")), tmp_path)
    with open_federation(driven.session, "mini", tmp_path) as federation:
        driven.begin(federation)
        (tmp_path / "clients/a/sent.key").write_bytes(b"short")
        found = driven.train(federation)
        assert [u.client for u in found.updates] == ["b"]
        assert "its answer did not leave; its journal could not be written" in found.refusals[0].reason
        refused = driven.plans()[1].model_copy(update={"global_digest": "0" * 64, "round": 2})
        found = federation.train([refused], Path(driven.history[-1].path), tmp_path / "round-002" / "updates")
        assert "expected 000000000000" in found.refusals[0].reason
    last = Journal(tmp_path / "clients/b/sent.jsonl").read()[-1]
    assert (last.kind, last.round, last.weights) == ("train", 2, None)
    assert "expected 000000000000" in last.text


def test_reports_on_joining_leave_only_from_those_who_share(
    session_of: Callable[..., Session], drive: type, tmp_path: Path, recordings: dict[str, Path]
) -> None:
    from zk0.federation.open import open_federation
    from zk0.journal import Journal
    from zk0.session import JoiningPlan

    clients = [
        {"name": n, "dataset": f"local:{recordings[n]}", "share_joining_report": n == "a"} for n in ("a", "b", "c")
    ]
    driven = drive(session_of(clients=clients, training={"local_steps": 1}), tmp_path)
    with open_federation(driven.session, "mini", tmp_path) as federation:
        driven.begin(federation)
        asked = {
            "times": 1,
            "batch_size": 32,
            "every_frames": 20,
            "lrs": (1e-3,),
            "scheduler": driven.session.scheduler,
        }
        plans = [
            JoiningPlan(**{k: v for k, v in dict(plan).items() if k not in ("lr", "mu", "control")} | asked)
            for plan in driven.plans()
        ]
        wrong = plans[2].model_copy(update={"global_digest": "0" * 64})
        start = Path(driven.history[0].path)
        found, refused = federation.report_joining(([*plans[:2], wrong], plans), start, start)
    assert [r.client for r in refused] == ["c"]
    assert found.keys() == {"a", "b"}
    assert json.loads(found["a"])["client"] == "a"
    assert found["b"] == ""
    assert (tmp_path / "clients/b/joining.md").is_file()
    sent = Journal(tmp_path / "clients/b/sent.jsonl").read()
    assert [s.kind for s in sent] == ["join", "alone", "joined"]
    assert "policy_loss" not in sent[-1].text


def test_an_audit_finds_receipts_and_tampering(session_of: Callable[..., Session], drive: type, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from flows.bot import app
    from zk0.federation.open import open_federation
    from zk0.federation.receipts import audit
    from zk0.merkle import receipts
    from zk0.records import RoundRecord

    driven = drive(session_of(("a", "b"), training={"local_steps": 1}), tmp_path)
    scratch = tmp_path / "clients" / "a"
    with open_federation(driven.session, "mini", tmp_path) as federation:
        driven.begin(federation)
        updates = driven.train(federation).updates
        assert [one.receipt for one in audit(scratch)] == [None, None]
        record = RoundRecord(round=1, checkpoint=driven.history[0], updates=updates, seconds=1, finished_at="")
        terms = driven.plans()[0].terms
        assert federation.give_receipts(terms, {"a": receipts([record], "a")}) == ()
        outside = terms.model_copy(update={"session": "../mini"})
        (refusal,) = federation.give_receipts(outside, {"a": receipts([record], "a")})
        assert "is no name of a session" in refusal.reason
    found = audit(scratch)
    assert [one.sent.kind for one in found] == ["join", "train", "receipts", "receipts"]
    assert found[1].receipt == receipts([record], "a")[0]
    assert found[1].update == updates[0].model_copy(update={"path": found[1].update.path})
    told = CliRunner().invoke(app, ["client", "audit", "--folder", str(scratch)], env={"COLUMNS": "200"})
    assert told.exit_code == 0, told.output
    assert "1 of 1 updates are proved to be in their average" in told.output
    assert updates[0].digest[:8] in told.output
    lines = CliRunner().invoke(app, ["client", "audit", "--folder", str(scratch), "--json"]).output.splitlines()
    assert [json.loads(line)["sent"]["kind"] for line in lines] == [one.sent.kind for one in found]
    journal = scratch / "sent.jsonl"
    journal.write_text(journal.read_text().replace('"round":1', '"round":2'))
    told = CliRunner().invoke(app, ["client", "audit", "--folder", str(scratch)])
    assert told.exit_code == 1
    assert "line 2: not signed" in told.output


def test_frames_whose_features_are_computed_are_told(
    session_of: Callable[..., Session], drive: type, tmp_path: Path
) -> None:
    told: list[tuple[Any, ...]] = []
    session = session_of(("a", "b"), cache_dir=str(tmp_path / "cache"), training={"features": "kv"})
    from zk0.federation.open import open_federation

    driven = drive(session, tmp_path / "here")
    with open_federation(session, "mini", tmp_path / "here", lambda *step: told.append(step)) as federation:
        driven.begin(federation)
        driven.train(federation)
    frames = [step for step in told if step[4] == "encode"]
    assert frames == [("a", 1, 12, 27, "encode"), ("a", 1, 27, 27, "encode"), ("b", 1, 14, 14, "encode")]
    log = (tmp_path / "here/clients/a/client.log").read_text()
    assert log.index("features of 27/27 frames computed") < log.index("step 1/3")

"""The keystone: every engine ends the same session with the same digest, and trains with the lr that was decided."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from zk0.session import Session
from zk0.weights import load_weights


@pytest.fixture(scope="module")
def in_this_process() -> dict[str, list[str]]:
    """Digests of the session that ran without any engine's processes, once it did."""
    return {}


STEPS = {(c, r, s, 3) for c in "abc" for r in (1, 2) for s in (1, 2, 3)} | {(c, 3, 1, 1) for c in "abc"}


def lagging_client_is_boosted(driven: Any, federation: Any) -> None:
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


def digests(session: Session, folder: Path, drive: type, on_step: Any = None) -> list[str]:
    """Two rounds; the digest of the start and of each round."""
    from zk0.federation.open import open_federation

    driven = drive(session, folder)
    with open_federation(session, "mini", folder, on_step) as federation:
        driven.begin(federation)
        for _ in range(2):
            collected = driven.train(federation)
            assert collected.refusals == ()
            assert [u.client for u in collected.updates] == ["a", "b", "c"]
            driven.average(collected.updates)
        driven.updates = collected.updates
        lagging_client_is_boosted(driven, federation)
    return [checkpoint.digest for checkpoint in driven.history]


@pytest.mark.parametrize("engine", ["local", "ray"])
def test_every_engine_ends_with_the_same_digest(
    engine: str,
    session_of: Callable[..., Session],
    drive: type,
    tmp_path: Path,
    in_this_process: dict[str, list[str]],
    my_workers: Callable[[], list[int]],
) -> None:
    steps: set[tuple[str, int, int, int]] = set()

    def on_step(client: str, round_number: int, step: int, of: int, work: str) -> None:
        if work == "train":
            steps.add((client, round_number, step, of))

    if not in_this_process:
        in_this_process["digests"] = digests(session_of(), tmp_path / "here", drive, on_step)
        assert steps == STEPS
    wanted = in_this_process["digests"]
    assert len(set(wanted)) == 3
    steps.clear()
    session = session_of(federation={"engine": engine, "workers": 2})
    assert digests(session, tmp_path / "there", drive, on_step) == wanted
    if engine == "local":
        assert steps == STEPS
        logs = [(tmp_path / f"there/server/worker-{i}.log").read_text() for i in (0, 1)]
        assert all("step 3/3" in log for log in logs)
    for client in "abc":
        log = (tmp_path / f"there/clients/{client}/client.log").read_text()
        assert log.count(f"{client}: round 2 step 3/3") == 1
        assert {line.split(" - ")[1].split(":")[0] for line in log.splitlines()} == {client}
        assert sorted(p.name for p in (tmp_path / f"there/clients/{client}").glob("round_*.json")) == [
            "round_1.json",
            "round_2.json",
            "round_3.json",
        ]
        assert len(list((tmp_path / f"there/clients/{client}/updates").glob("*.safetensors"))) == 1


def test_the_order_of_clients_changes_no_bit(
    session_of: Callable[..., Session], drive: type, tmp_path: Path, in_this_process: dict[str, list[str]]
) -> None:
    wanted = in_this_process.get("digests") or digests(session_of(), tmp_path / "here", drive)
    assert digests(session_of(("c", "a", "b")), tmp_path / "there", drive) == wanted


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

"""Finished updates on a client's disk: the same bytes however often they are asked for, in every wire format."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from zk0.aggregation.verify import verify_update
from zk0.records import ClientMetrics, PolicyRecipe, Update, Wire
from zk0.session import (
    ContractSettings,
    DataSettings,
    RoundPlan,
    SchedulerSettings,
    SimulatorSettings,
    Terms,
    TrainingSettings,
)
from zk0.training.outbox import Finished, Outbox, forget_session
from zk0.weights import load_weights, open_weights, save_weights
from zk0.wire import open_update

METRICS = ClientMetrics(
    policy_loss=1, fedprox_loss=0, grad_norm=1, update_norm=1, local_steps=1, lr_first=1, lr_last=1, seconds=1
)
SHAPE = (64, 500)


@pytest.fixture
def begun(tmp_path: Path) -> tuple[Path, str]:
    """Global weights: path and digest."""
    path = tmp_path / "global.safetensors"
    return path, save_weights(path, {"w": np.ones(SHAPE, np.float32)})[0]


@pytest.fixture
def plan_of(begun: tuple[Path, str]) -> Callable[..., RoundPlan]:
    def make(number: int = 1, session: str = "s", **wire: Any) -> RoundPlan:
        terms = Terms(
            session=session, seed=1, contract=ContractSettings(), data=DataSettings(), simulator=SimulatorSettings()
        )
        return RoundPlan(
            terms=terms,
            round=number,
            client="a",
            recipe=PolicyRecipe(path="tiny", cameras=("x",), joints=6, seed=1),
            global_digest=begun[1],
            statistics=None,
            lr=1.0,
            mu=0.0,
            training=TrainingSettings(),
            scheduler=SchedulerSettings(),
            wire=Wire(**wire),
        )

    return make


def trained(number: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(number)
    return {"w": (1 + rng.normal(0, 1e-3, SHAPE)).astype(np.float32)}


def done(number: int) -> Finished:
    return Finished(trained(number), 10, METRICS)


def values_of(update: Update, start: Path) -> np.ndarray:
    found = np.empty(SHAPE[0] * SHAPE[1], np.float32)
    with open_weights(start) as anchor, open_update(update, anchor) as source:
        source.read("w", 0, found)
    return found.reshape(SHAPE)


@pytest.mark.parametrize(("up", "most", "error"), [("fp32", 4, 0), ("bf16", 2, 2e-5), ("int8", 1, 2e-5)])
def test_an_update_is_kept_verified_and_read_back(tmp_path, begun, plan_of, up, most, error):
    box, plan = Outbox(tmp_path / "scratch", "d"), plan_of(up=up)
    assert box.kept(plan) is None
    update = box.keep(plan, done(1), begun[0])
    assert box.kept(plan) == update
    assert Path(update.path).stat().st_size == update.bytes < most * SHAPE[0] * SHAPE[1] * 1.02
    length = verify_update(update, round=1, global_digest=begun[1], global_path=begun[0], seen=())
    assert length == pytest.approx(np.linalg.norm(trained(1)["w"] - load_weights(begun[0])["w"]), rel=1e-3)
    assert np.abs(values_of(update, begun[0]) - trained(1)["w"]).max() <= error
    assert box.kept(plan_of(number=2, up=up)) is None


@pytest.mark.parametrize("up", ["fp32", "bf16", "int8"])
def test_a_packed_one_is_smaller_and_made_again_when_it_is_cut(tmp_path, begun, plan_of, up):
    box = Outbox(tmp_path / "scratch", "d")
    plain = box.keep(plan_of(up=up), done(1), begun[0])
    plan = plan_of(up=up, packed=True)
    update = box.keep(plan, done(1), begun[0])
    assert update.digest == plain.digest
    assert update.bytes == Path(update.path).stat().st_size < plain.bytes
    assert box.kept(plan) == update
    Path(update.path).write_bytes(b"")
    assert box.kept(plan) is None


def test_a_retried_round_has_the_same_bytes_and_the_next_one_what_was_lost(tmp_path, begun, plan_of):
    box = Outbox(tmp_path / "scratch", "d")
    first = values_of(box.keep(plan_of(1, up="int8"), done(1), begun[0]), begun[0])
    second = box.keep(plan_of(2, up="int8"), done(2), begun[0])
    read = values_of(second, begun[0])
    again = box.keep(plan_of(2, up="int8"), done(2), begun[0])
    assert again == second
    box.forget_before(3)  # the answer is gone, and asked for once more
    assert box.keep(plan_of(2, up="int8"), done(2), begun[0]).digest == second.digest

    plain = Outbox(tmp_path / "other", "d").keep(plan_of(2, up="int8"), done(2), begun[0])
    assert plain.digest != second.digest
    meant = trained(1)["w"].astype(float) + trained(2)["w"]
    assert np.abs(first.astype(float) + read - meant).max() < 2e-5
    with_loss, without = (np.linalg.norm(first + one - meant) for one in (read, values_of(plain, begun[0])))
    assert with_loss < 0.8 * without


def test_what_was_lost_is_of_one_session_and_goes_with_it(tmp_path, begun, plan_of):
    box = Outbox(tmp_path / "scratch", "d")
    box.keep(plan_of(1, "s", up="int8"), done(1), begun[0])
    other = box.keep(plan_of(2, "../t", up="int8"), done(2), begun[0])
    fresh = Outbox(tmp_path / "other", "d").keep(plan_of(2, "u", up="int8"), done(2), begun[0])
    assert other.digest == fresh.digest
    assert len(list((tmp_path / "scratch" / "memory").iterdir())) == 2
    forget_session(tmp_path / "scratch", "../t")
    assert len(list((tmp_path / "scratch" / "memory").iterdir())) == 1
    for number in (2, 3, 4):
        box.keep(plan_of(number, "s", up="int8"), done(number), begun[0])
    assert len(list((tmp_path / "scratch").glob("memory/*/lost-*"))) == 2  # of the last round and the one before

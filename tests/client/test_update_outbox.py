"""Stored updates of a client: the same bytes for every request, in every wire format."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from zk0.aggregation.verify import verify_update
from zk0.client.round_state import remove_old_sessions, remove_session_state
from zk0.client.update_outbox import TrainedUpdate, UpdateOutbox
from zk0.records import ClientMetrics, PolicyRecipe, Update, WireFormat
from zk0.settings.dataset_settings import ContractSettings, DataSettings, SimulatorSettings
from zk0.settings.plans import RoundPlan, SessionTerms
from zk0.settings.training_settings import LocalTrainingSettings, SchedulerSettings
from zk0.weights.digests import load_weights
from zk0.weights.files import open_weights
from zk0.weights.update_files import open_update
from zk0.weights.writer import save_weights

METRICS = ClientMetrics(
    policy_loss=1, fedprox_loss=0, grad_norm=1, update_norm=1, local_steps=1, lr_first=1, lr_last=1, seconds=1
)
SHAPE = (64, 500)


@pytest.fixture
def start_file(tmp_path: Path) -> tuple[Path, str]:
    """Global weights: path and digest."""
    path = tmp_path / "global.safetensors"
    return path, save_weights(path, {"w": np.ones(SHAPE, np.float32)})[0]


@pytest.fixture
def plan_of(start_file: tuple[Path, str]) -> Callable[..., RoundPlan]:
    def make(number: int = 1, session: str = "s", **wire: Any) -> RoundPlan:
        terms = SessionTerms(
            session=session, seed=1, contract=ContractSettings(), data=DataSettings(), simulator=SimulatorSettings()
        )
        return RoundPlan(
            terms=terms,
            round=number,
            client="a",
            recipe=PolicyRecipe(path="tiny", cameras=("x",), joints=6, seed=1),
            global_digest=start_file[1],
            statistics=None,
            lr=1.0,
            mu=0.0,
            training=LocalTrainingSettings(),
            scheduler=SchedulerSettings(),
            wire=WireFormat(**wire),
        )

    return make


def trained(number: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(number)
    return {"w": (1 + rng.normal(0, 1e-3, SHAPE)).astype(np.float32)}


def trained_update(number: int) -> TrainedUpdate:
    return TrainedUpdate(trained(number), 10, METRICS)


def values_of(update: Update, start: Path) -> np.ndarray:
    found = np.empty(SHAPE[0] * SHAPE[1], np.float32)
    with open_weights(start) as anchor, open_update(update, anchor) as source:
        source.read("w", 0, found)
    return found.reshape(SHAPE)


@pytest.mark.parametrize(("up", "most", "error"), [("fp32", 4, 0), ("bf16", 2, 2e-5), ("int8", 1, 2e-5)])
def test_an_update_is_stored_verified_and_read_back(tmp_path, start_file, plan_of, up, most, error):
    outbox, plan = UpdateOutbox(tmp_path / "scratch", "d"), plan_of(upload=up)
    assert outbox.stored(plan) is None
    update = outbox.store(plan, trained_update(1), start_file[0])
    assert outbox.stored(plan) == update
    assert Path(update.path).stat().st_size == update.bytes < most * SHAPE[0] * SHAPE[1] * 1.02
    length = verify_update(update, round=1, global_digest=start_file[1], global_path=start_file[0], already_received=())
    assert length == pytest.approx(np.linalg.norm(trained(1)["w"] - load_weights(start_file[0])["w"]), rel=1e-3)
    assert np.abs(values_of(update, start_file[0]) - trained(1)["w"]).max() <= error
    assert outbox.stored(plan_of(number=2, upload=up)) is None


@pytest.mark.parametrize("up", ["fp32", "bf16", "int8"])
def test_a_compressed_update_is_smaller_and_rejected_when_truncated(tmp_path, start_file, plan_of, up):
    outbox = UpdateOutbox(tmp_path / "scratch", "d")
    plain = outbox.store(plan_of(upload=up), trained_update(1), start_file[0])
    plan = plan_of(upload=up, compressed=True)
    update = outbox.store(plan, trained_update(1), start_file[0])
    assert update.digest == plain.digest
    assert update.bytes == Path(update.path).stat().st_size < plain.bytes
    assert outbox.stored(plan) == update
    Path(update.path).write_bytes(b"")
    assert outbox.stored(plan) is None


def test_a_repeated_round_has_the_same_bytes_and_the_next_corrects_the_quantization_error(
    tmp_path, start_file, plan_of
):
    outbox = UpdateOutbox(tmp_path / "scratch", "d")
    first = values_of(outbox.store(plan_of(1, upload="int8"), trained_update(1), start_file[0]), start_file[0])
    second = outbox.store(plan_of(2, upload="int8"), trained_update(2), start_file[0])
    read = values_of(second, start_file[0])
    again = outbox.store(plan_of(2, upload="int8"), trained_update(2), start_file[0])
    assert again == second
    outbox.remove_before(plan_of(3, upload="int8"))  # the update is removed, and requested once more
    assert outbox.store(plan_of(2, upload="int8"), trained_update(2), start_file[0]).digest == second.digest

    plain = UpdateOutbox(tmp_path / "other", "d").store(plan_of(2, upload="int8"), trained_update(2), start_file[0])
    assert plain.digest != second.digest
    exact = trained(1)["w"].astype(float) + trained(2)["w"]
    assert np.abs(first.astype(float) + read - exact).max() < 2e-5
    corrected, uncorrected = (np.linalg.norm(first + one - exact) for one in (read, values_of(plain, start_file[0])))
    assert corrected < 0.8 * uncorrected


def test_updates_and_quantization_errors_belong_to_one_session_and_are_removed_with_it(tmp_path, start_file, plan_of):
    outbox = UpdateOutbox(tmp_path / "scratch", "d")
    outbox.store(plan_of(1, "s", upload="int8"), trained_update(1), start_file[0])
    other = outbox.store(plan_of(2, "../t", upload="int8"), trained_update(2), start_file[0])
    fresh = UpdateOutbox(tmp_path / "other", "d").store(
        plan_of(2, "u", upload="int8"), trained_update(2), start_file[0]
    )
    assert other.digest == fresh.digest
    assert len(list((tmp_path / "scratch" / "sessions").iterdir())) == 2
    assert Path(other.path).is_file()
    remove_session_state(tmp_path / "scratch", "../t")
    assert not Path(other.path).exists()
    assert len(list((tmp_path / "scratch" / "sessions").iterdir())) == 1
    for number in (2, 3, 4):
        outbox.store(plan_of(number, "s", upload="int8"), trained_update(number), start_file[0])
    assert len(list((tmp_path / "scratch").glob("sessions/*/quantization-error-*"))) == 2  # of the last two rounds


def test_what_is_left_of_sessions_that_never_ended_is_removed_when_it_is_old(tmp_path, start_file, plan_of):
    outbox, scratch = UpdateOutbox(tmp_path / "scratch", "d"), tmp_path / "scratch"
    old, running = (outbox.store(plan_of(1, name), trained_update(1), start_file[0]) for name in ("old", "running"))
    for path in Path(old.path).parents[1], *Path(old.path).parents[1].rglob("*"):
        os.utime(path, (0, 0))
    os.utime(Path(running.path).parents[1], (0, 0))  # its files are new
    remove_old_sessions(scratch, 3600)
    assert [Path(old.path).exists(), Path(running.path).exists()] == [False, True]
    remove_old_sessions(tmp_path / "no-folder", 3600)

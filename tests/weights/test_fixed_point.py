"""Whole numbers on a shared grid: sums do not overflow, are those of real numbers, and are read as weights."""

from pathlib import Path

import numpy as np
import pytest

from zk0.aggregation.aggregate import aggregate
from zk0.aggregation.reduction_plan import AggregationTerms
from zk0.errors import UpdateError
from zk0.records import SUM_NAME, ClientMetrics, SummedUpdates, Update
from zk0.settings.aggregation_settings import AggregationSettings
from zk0.weights.digests import load_weights
from zk0.weights.fixed_point import FixedPointGrid, decode_metrics, encode_metrics, false_metrics, summed_specs
from zk0.weights.tensor_spec import TensorSpec
from zk0.weights.writer import save_weights

METRICS = ClientMetrics(
    policy_loss=0.123456, fedprox_loss=0, grad_norm=1e15, update_norm=2, local_steps=7, lr_first=1e-4, lr_last=1e-6,
    seconds=3600,
)  # fmt: skip


@pytest.mark.parametrize("bits", [16, 32])
@pytest.mark.parametrize("clients", [3, 1000])
def test_the_largest_sums_do_not_wrap_around(bits: int, clients: int) -> None:
    grid = FixedPointGrid(bits, 0.01, clients)
    for sign in (1, -1):
        words = grid.encode(np.array([sign * 0.01, sign * 5.0]), 1 / clients)
        total = (words * np.uint64(clients)).astype(words.dtype).view(f"int{bits}")
        assert total * grid.step == pytest.approx(sign * 0.01, rel=0.02 if bits == 16 else 1e-6)


def test_a_sum_is_that_of_real_numbers_up_to_half_a_step_of_each_client() -> None:
    grid, draw = FixedPointGrid(16, 0.01, 5), np.random.default_rng(0)
    shares = np.array([0.1, 0.2, 0.3, 0.25, 0.15])
    deltas = draw.uniform(-0.01, 0.01, (5, 1000))
    words = sum(grid.encode(one, share) for one, share in zip(deltas, shares, strict=True))
    error = np.abs(np.asarray(words).view(np.int16) * grid.step - shares @ deltas)
    assert error.max() <= 5 * 0.5 * grid.step
    assert error.max() > grid.step


def test_metrics_are_means() -> None:
    other = METRICS.model_copy(update={"policy_loss": 0.5, "grad_norm": 3.0, "local_steps": 9})
    words = encode_metrics(METRICS, 0.25) + encode_metrics(other, 0.5)
    found = decode_metrics(words, 0.75)
    assert found.policy_loss == pytest.approx((0.123456 + 2 * 0.5) / 3, abs=1e-6)
    assert found.local_steps == round((7 + 2 * 9) / 3)
    assert found.grad_norm == pytest.approx(2**36 / 3, rel=1e-6)  # larger ones are cut to 2^36
    assert false_metrics(words, 0.75) == {}


@pytest.mark.parametrize("word", [2**62, 2**63 - 1, 2**63, 2**64 - 1])
def test_false_metrics_of_a_client_spoil_the_means_and_stop_nothing(word: int) -> None:
    """A record cannot hold such numbers, and the masked words that bring them are stored: every retry would fail."""
    words = np.full(len(ClientMetrics.model_fields), word, np.uint64)
    for share in (0.75, 1e-9):
        assert set(false_metrics(words, share)) == set(ClientMetrics.model_fields)
        found = decode_metrics(words, share)
        assert ClientMetrics.model_validate_json(found.model_dump_json()) == found
        assert (found.seconds == 0) == (word >= 2**63)


def sum_update(folder: Path, old: dict[str, np.ndarray], numbers: int) -> Update:
    """Return the update of a sum whose words are all the same number; its clients have half of the mean."""
    words = {name: np.full(values.shape, numbers, np.int16).view(np.uint16) for name, values in old.items()}
    digest, size = save_weights(folder / "sum", words)
    summed = SummedUpdates(clients=("a", "b", "c", "d"), roster="r", threshold=4, bits=16, step=1e-5, share=0.5)
    return Update(
        client=SUM_NAME, round=1, global_digest="g", path=str(folder / "sum"), digest=digest, bytes=size, examples=9,
        dataset=SUM_NAME, metrics=METRICS, summed=summed,
    )  # fmt: skip


def test_a_sum_is_aggregated_as_the_mean_and_not_clipped_again(tmp_path: Path) -> None:
    old = {"w": np.random.default_rng(1).normal(size=(300, 40)).astype(np.float32)}
    save_weights(tmp_path / "global", old)
    terms = AggregationTerms(AggregationSettings(clip_norm=1e-3))
    result = aggregate([sum_update(tmp_path, old, -700)], tmp_path / "global", tmp_path / "new", terms)
    expected = (old["w"].astype(np.float64) - 700 * 1e-5 / 0.5).astype(np.float32)
    np.testing.assert_array_equal(load_weights(tmp_path / "new")["w"], expected)
    assert [(c.client, c.weight, c.scale) for c in result.contributions] == [(SUM_NAME, 1.0, 1.0)]


def test_noise_is_that_of_the_clients_in_the_sum(tmp_path: Path) -> None:
    old = {"w": np.zeros((2000, 40), np.float32)}
    save_weights(tmp_path / "global", old)
    settings = AggregationSettings(clip_norm=2.0, noise_multiplier=0.5, quarantine_factor=0)
    terms = AggregationTerms(settings, secret=b"s" * 32)
    aggregate([sum_update(tmp_path, old, 0)], tmp_path / "global", tmp_path / "new", terms)
    assert load_weights(tmp_path / "new")["w"].std() == pytest.approx(0.5 * 2.0 / 4, rel=0.02)


def test_a_file_of_other_tensors_is_no_sum(tmp_path: Path) -> None:
    old = {"w": np.zeros((4, 3), np.float32)}
    save_weights(tmp_path / "global", old)
    update = sum_update(tmp_path, {"w": np.zeros((3, 4), np.float32)}, 0)
    with pytest.raises(UpdateError, match="not those of a sum"):
        aggregate([update], tmp_path / "global", tmp_path / "new")
    with pytest.raises(UpdateError, match="only float32 can be summed"):
        summed_specs({"w": TensorSpec("float16", (2,))}, 16)

"""Updates that began from older weights: their deltas are scaled by their staleness and added to the weights of now."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from strategy_rounds import initial_weights, perturbed

from zk0.aggregation.aggregate import AggregationResult, aggregate
from zk0.aggregation.reduction_plan import AggregationTerms
from zk0.aggregation.stale_updates import StaleStart
from zk0.records import Update, WireFormat
from zk0.settings.aggregation_settings import AggregationSettings
from zk0.weights.deltas import save_deltas
from zk0.weights.digests import load_weights
from zk0.weights.writer import save_weights

Weights = dict[str, np.ndarray]
FACTOR = 3**-0.5


@pytest.fixture
def generations(tmp_path: Path) -> list[Weights]:
    """Global weights of two rounds, in the files `0` and `1`."""
    rng = np.random.default_rng(5)
    old = initial_weights()
    weights = [old, perturbed(old, rng, 0.1)]
    for number, one in enumerate(weights):
        save_weights(tmp_path / str(number), one)
    return weights


def step(tmp_path: Path, updates: list[Update], settings: AggregationSettings | None = None) -> AggregationResult:
    """A server step from the weights in file `1`; b's update began from those in file `0`."""
    stale = {"b": StaleStart(tmp_path / "0", FACTOR)}
    terms = AggregationTerms(settings or AggregationSettings(), stale=stale)
    return aggregate(updates, tmp_path / "1", tmp_path / "new", terms)


def trained(generations: list[Weights]) -> list[Weights]:
    """Weights that a trained from file `1` and b from file `0`."""
    rng = np.random.default_rng(6)
    return [perturbed(generations[1], rng, 0.02), perturbed(generations[0], rng, 0.03)]


def deltas(generations: list[Weights], name: str) -> list[np.ndarray]:
    a, b = trained(generations)
    return [a[name].astype(float) - generations[1][name], b[name].astype(float) - generations[0][name]]


def test_the_delta_is_scaled_and_added_to_the_weights_of_now(
    saved: Callable[..., Update], tmp_path: Path, generations: list[Weights]
) -> None:
    """FedBuff (arXiv 2106.06639, algorithm 1), with the weights of the clients' frames: 300 and 100."""
    a, b = trained(generations)
    result = step(tmp_path, [saved("a", a, 300), saved("b", b, 100)])
    new = load_weights(tmp_path / "new", result.digest)
    for name, now in generations[1].items():
        of_a, of_b = deltas(generations, name)
        expected = now + 0.75 * of_a + 0.25 * FACTOR * of_b
        np.testing.assert_allclose(new[name], expected, rtol=1e-6, atol=1e-7)
    assert [(c.client, c.weight) for c in result.contributions] == [("a", 0.75), ("b", 0.25)]
    assert [c.scale for c in result.contributions] == [1.0, FACTOR]
    norms = [np.sqrt(sum(np.sum(deltas(generations, name)[i] ** 2) for name in generations[1])) for i in (0, 1)]
    assert [c.update_norm for c in result.contributions] == pytest.approx(norms, rel=1e-4)


def test_a_stale_delta_is_clipped_to_the_same_norm(
    saved: Callable[..., Update], tmp_path: Path, generations: list[Weights]
) -> None:
    a, b = trained(generations)
    result = step(tmp_path, [saved("a", a), saved("b", b)], AggregationSettings(clip_norm=0.5))
    for one, factor in zip(result.contributions, (1.0, FACTOR), strict=True):
        assert one.scale == pytest.approx(factor * 0.5 / one.update_norm, rel=1e-6)


def test_a_quantized_delta_is_added_to_the_weights_of_now(tmp_path: Path, generations: list[Weights]) -> None:
    _, b = trained(generations)
    path = tmp_path / "b.safetensors"
    digest, size = save_deltas(path, b, generations[0], "bf16")
    fields = {"client": "b", "round": 1, "global_digest": "g" * 64, "examples": 1, "dataset": "d"}
    metrics = {"policy_loss": 1, "fedprox_loss": 0, "grad_norm": 1, "update_norm": 1, "local_steps": 1}
    metrics |= {"lr_first": 1, "lr_last": 1, "seconds": 1}
    update = Update(
        **fields, path=str(path), digest=digest, bytes=size, metrics=metrics, wire=WireFormat(upload="bf16")
    )
    new = load_weights(Path(step(tmp_path, [update]).path))
    for name, now in generations[1].items():
        np.testing.assert_allclose(new[name], now + FACTOR * deltas(generations, name)[1], atol=1e-3)


def test_updates_that_are_not_stale_give_the_same_bits_as_ever(
    saved: Callable[..., Update], tmp_path: Path, generations: list[Weights]
) -> None:
    a, b = trained(generations)
    updates = [saved("a", a, 3), saved("c", b, 5)]
    plain = aggregate(updates, tmp_path / "1", tmp_path / "plain")
    assert step(tmp_path, updates).digest == plain.digest


@pytest.mark.parametrize(
    "settings",
    [
        {"strategy": "fedavgm"},
        {"strategy": "fedadam"},
        {"strategy": "fedyogi"},
        {"weighting": "equal"},
        {"clip_norm": 0.5, "noise_multiplier": 0.1, "weighting": "equal"},
    ],
)
def test_every_mean_takes_a_stale_delta_as_a_smaller_one_of_now(
    saved: Callable[..., Update], tmp_path: Path, generations: list[Weights], settings: dict[str, Any]
) -> None:
    """The step is that with an update of now whose delta is the scaled one, whatever the server's optimizer does."""
    a, b = trained(generations)
    now, old = generations[1], generations[0]
    scaled = {name: (now[name] + FACTOR * (b[name] - old[name])).astype(np.float32) for name in now}
    made = AggregationSettings(**({"quarantine_factor": 0} | settings))
    secret = b"s" * 32
    stale = AggregationTerms(made, stale={"b": StaleStart(tmp_path / "0", FACTOR)}, secret=secret)
    fresh = AggregationTerms(made, secret=secret)
    found = aggregate([saved("a", a, 300), saved("b", b, 100)], tmp_path / "1", tmp_path / "stale", stale)
    expected = aggregate([saved("a", a, 300), saved("b", scaled, 100)], tmp_path / "1", tmp_path / "fresh", fresh)
    new, wanted = load_weights(Path(found.path)), load_weights(Path(expected.path))
    if settings.get("clip_norm"):  # a stale delta is clipped before it is scaled
        wanted = {name: values for name, values in wanted.items() if found.contributions[1].scale == 1.0}
    for name, values in wanted.items():
        np.testing.assert_allclose(new[name], values, rtol=1e-4, atol=2e-6)

"""Rounds of a small federation under one aggregation strategy, by zk0 and by Flower's strategy of the same name."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, Message, Metadata, MetricRecord, RecordDict
from flwr.serverapp.strategy.fedopt import FedOpt

from zk0.aggregation.aggregate import AggregationResult, aggregate
from zk0.aggregation.reduction_plan import AggregationTerms
from zk0.records import Update
from zk0.settings.aggregation_settings import AggregationSettings
from zk0.weights.digests import load_weights
from zk0.weights.writer import save_weights

SHAPES = {"a.weight": (60, 70), "b.bias": (7,), "scalar": ()}
EXAMPLES = (300, 20, 111, 5, 64, 90, 17)
Weights = dict[str, np.ndarray]
SaveUpdate = Callable[..., Update]


def perturbed(weights: Weights, rng: np.random.Generator, std: float) -> Weights:
    """Weights with Gaussian noise added."""
    return {n: np.asarray(w + rng.normal(0, std, w.shape), np.float32) for n, w in weights.items()}


def initial_weights() -> Weights:
    """The global weights of round 0."""
    return perturbed({n: np.zeros(shape) for n, shape in SHAPES.items()}, np.random.default_rng(0), 1.0)


def client_weights(round_number: int, weights: Weights) -> list[Weights]:
    """Weights of seven clients near the global ones; the last two are far away."""
    rng = np.random.default_rng(round_number)
    return [perturbed(weights, rng, std) for std in (0.02, 0.03, 0.01, 0.02, 0.025, 0.5, 2.0)]


def flower_round(strategy: Any, round_number: int, old: Weights, clients: list[Weights]) -> Weights:
    """The global weights that Flower's strategy computes."""
    of_arrays = isinstance(strategy, FedOpt)
    strategy.current_arrays = old if of_arrays else ArrayRecord({n: Array(w) for n, w in old.items()})
    replies = []
    for weights, examples in zip(clients, EXAMPLES, strict=True):
        content = RecordDict(
            {
                "arrays": ArrayRecord({n: Array(w.copy()) for n, w in weights.items()}),
                "metrics": MetricRecord({"num-examples": examples}),
            }
        )
        replies.append(
            Message(content=content, metadata=Metadata(1, "id", 1, 0, "", str(round_number), 0.0, 60.0, "train"))
        )
    arrays, _ = strategy.aggregate_train(round_number, replies)
    return {n: array.numpy() for n, array in arrays.items()}


def zk0_round(
    save_update: SaveUpdate, folder: Path, round_number: int, clients: list[Weights], terms: AggregationTerms
) -> AggregationResult:
    """The result of zk0's strategy; global weights lie in folders `round-N`."""
    updates = [
        save_update(f"c{i}", weights, n, round_number)
        for i, (weights, n) in enumerate(zip(clients, EXAMPLES, strict=True))
    ]
    before, after = (folder / f"round-{n}" / "weights.safetensors" for n in (round_number - 1, round_number))
    return aggregate(updates, before, after, terms)


def assert_three_rounds_like_flower(
    save_update: SaveUpdate, folder: Path, settings: AggregationSettings, flower_strategy: Any
) -> None:
    """Three rounds, each from the state of the one before, lead to the weights that Flower's strategy computes."""
    weights = initial_weights()
    save_weights(folder / "round-0" / "weights.safetensors", weights)
    state: dict[str, Path] = {}
    for round_number in (1, 2, 3):
        clients = client_weights(round_number, weights)
        expected = flower_round(flower_strategy, round_number, weights, clients)
        result = zk0_round(save_update, folder, round_number, clients, AggregationTerms(settings, round_number, state))
        state = {one.slot: Path(one.path) for one in result.server_state}
        weights = load_weights(Path(result.path), result.digest)
        for name in SHAPES:
            np.testing.assert_allclose(weights[name], expected[name], rtol=2e-5, atol=2e-6)

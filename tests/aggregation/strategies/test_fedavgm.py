"""FedAvgM beside Flower's, and its state by hand."""

from pathlib import Path

import numpy as np
import pytest
from flwr.serverapp.strategy import FedAvgM as FlowerFedAvgM
from strategy_rounds import assert_three_rounds_like_flower

from zk0.aggregation.aggregate import aggregate
from zk0.aggregation.reduction_plan import AggregationTerms
from zk0.aggregation.strategies.fedavgm import FedAvgM
from zk0.settings.aggregation_settings import AggregationSettings
from zk0.weights.digests import load_weights
from zk0.weights.writer import save_weights


@pytest.mark.parametrize(
    ("settings", "flower_settings"),
    [
        ({}, {"server_momentum": 0.9}),
        ({"momentum": 0.5, "server_lr": 0.3}, {"server_momentum": 0.5, "server_learning_rate": 0.3}),
    ],
)
def test_three_rounds_are_those_of_flower(tmp_path, saved, settings, flower_settings):
    ours = AggregationSettings(strategy="fedavgm", **settings)
    assert_three_rounds_like_flower(saved, tmp_path, ours, FlowerFedAvgM(**flower_settings))


def test_default_learning_rate_is_that_of_flower():
    assert FedAvgM.default_server_lr == FlowerFedAvgM().server_learning_rate


def test_momentum_continues_from_its_file(tmp_path, saved):
    """Momentum after two rounds by hand; in the second round the client does not move."""
    settings = AggregationSettings(strategy="fedavgm", momentum=0.5)
    save_weights(tmp_path / "round-0" / "weights.safetensors", {"w": np.array([1, 2], np.float32)})
    first = aggregate(
        [saved("a", {"w": np.array([2, 0], np.float32)})],
        tmp_path / "round-0" / "weights.safetensors",
        tmp_path / "round-1" / "weights.safetensors",
        AggregationTerms(settings, 1),
    )
    (state,) = first.server_state
    assert state.slot == "momentum"
    np.testing.assert_array_equal(load_weights(Path(state.path), state.digest)["w"], [-1, 2])
    np.testing.assert_array_equal(load_weights(Path(first.path))["w"], [2, 0])
    second = aggregate(
        [saved("a", load_weights(Path(first.path)), 1, 2)],
        Path(first.path),
        tmp_path / "round-2" / "weights.safetensors",
        AggregationTerms(settings, 2, {"momentum": Path(state.path)}),
    )
    np.testing.assert_array_equal(load_weights(Path(second.path))["w"], [2.5, -1])

"""FedYogi beside Flower's."""

import pytest
from flwr.serverapp.strategy import FedYogi as FlowerFedYogi
from strategy_rounds import assert_three_rounds_like_flower

from zk0.aggregation.strategies.fedyogi import FedYogi
from zk0.settings.aggregation_settings import AggregationSettings

SETTINGS = {"beta_1": 0.8, "beta_2": 0.95, "tau": 0.1}


@pytest.mark.parametrize(
    ("settings", "flower_settings"), [({}, {}), (SETTINGS | {"server_lr": 1.0}, SETTINGS | {"eta": 1.0})]
)
def test_three_rounds_are_those_of_flower(tmp_path, saved, settings, flower_settings):
    ours = AggregationSettings(strategy="fedyogi", **settings)
    assert_three_rounds_like_flower(saved, tmp_path, ours, FlowerFedYogi(**flower_settings))


def test_default_learning_rate_is_that_of_flower():
    assert FedYogi.default_server_lr == FlowerFedYogi().eta

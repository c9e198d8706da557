"""The coordinate-wise trimmed mean beside Flower's."""

import pytest
from flwr.serverapp.strategy import FedTrimmedAvg
from strategy_rounds import assert_three_rounds_like_flower

from zk0.settings.aggregation_settings import AggregationSettings


@pytest.mark.parametrize(("settings", "beta"), [({}, 0.2), ({"trim_fraction": 0.3}, 0.3)])
def test_three_rounds_are_those_of_flower(tmp_path, saved, settings, beta):
    ours = AggregationSettings(strategy="trimmed_mean", **settings)
    assert_three_rounds_like_flower(saved, tmp_path, ours, FedTrimmedAvg(beta=beta))

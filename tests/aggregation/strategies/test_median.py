"""The coordinate-wise median beside Flower's."""

from flwr.serverapp.strategy import FedMedian
from strategy_rounds import assert_three_rounds_like_flower

from zk0.settings.aggregation_settings import AggregationSettings


def test_three_rounds_are_those_of_flower(tmp_path, saved):
    assert_three_rounds_like_flower(saved, tmp_path, AggregationSettings(strategy="median"), FedMedian())

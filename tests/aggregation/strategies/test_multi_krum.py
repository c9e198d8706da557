"""Multi-Krum beside Flower's, and how many updates it averages."""

import pytest
from flwr.serverapp.strategy import MultiKrum
from strategy_rounds import assert_three_rounds_like_flower, client_weights, initial_weights, zk0_round

from zk0.aggregation.reduction_plan import AggregationTerms
from zk0.settings.aggregation_settings import AggregationSettings
from zk0.weights.writer import save_weights


def test_three_rounds_are_those_of_flower(tmp_path, saved):
    ours = AggregationSettings(strategy="multi_krum", malicious=2, selected=4)
    assert_three_rounds_like_flower(saved, tmp_path, ours, MultiKrum(num_malicious_nodes=2, num_nodes_to_select=4))


def test_malicious_and_two_more_are_left_out_by_default(tmp_path, saved):
    save_weights(tmp_path / "round-0" / "weights.safetensors", initial_weights())
    terms = AggregationTerms(AggregationSettings(strategy="multi_krum", malicious=2))
    result = zk0_round(saved, tmp_path, 1, client_weights(1, initial_weights()), terms)
    assert len([c for c in result.contributions if c.weight]) == 3
    assert sum(c.weight for c in result.contributions) == pytest.approx(1.0)

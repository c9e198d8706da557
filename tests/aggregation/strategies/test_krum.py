"""Krum beside Flower's, and its choice computed from whole vectors."""

from pathlib import Path

import numpy as np
import pytest
from flwr.serverapp.strategy import Krum
from strategy_rounds import SHAPES, assert_three_rounds_like_flower, client_weights, initial_weights, zk0_round

from zk0.aggregation.aggregate import aggregate
from zk0.aggregation.reduction_plan import AggregationTerms
from zk0.errors import UpdateError
from zk0.settings.aggregation_settings import AggregationSettings
from zk0.weights.digests import load_weights
from zk0.weights.writer import save_weights


def test_three_rounds_are_those_of_flower(tmp_path, saved):
    ours = AggregationSettings(strategy="krum", malicious=2)
    assert_three_rounds_like_flower(saved, tmp_path, ours, Krum(num_malicious_nodes=2))


def test_new_weights_are_those_of_one_client_and_the_result_names_it(tmp_path, saved):
    save_weights(tmp_path / "round-0" / "weights.safetensors", initial_weights())
    clients = client_weights(1, initial_weights())
    terms = AggregationTerms(AggregationSettings(strategy="krum", malicious=2))
    result = zk0_round(saved, tmp_path, 1, clients, terms)
    (chosen,) = [c for c in result.contributions if c.weight]
    assert chosen.weight == 1.0
    assert chosen.client in ("c0", "c1", "c2", "c3", "c4")  # not those that are far away
    new = load_weights(Path(result.path))
    assert all(new[n].tobytes() == clients[int(chosen.client[1])][n].tobytes() for n in SHAPES)
    flat = np.array([np.concatenate([w[n].ravel() for n in SHAPES]) for w in clients], np.float64)
    squares = ((flat[:, None] - flat[None]) ** 2).sum(axis=2)
    scores = [np.sort(row)[1:4].sum() for row in squares]  # the 7 - 2 - 2 closest others
    assert chosen.client == f"c{int(np.argmin(scores))}"


def test_too_few_updates_are_rejected(tmp_path, saved):
    save_weights(tmp_path / "round-0" / "weights.safetensors", initial_weights())
    updates = [saved(f"c{i}", initial_weights()) for i in range(4)]
    with pytest.raises(UpdateError, match="4 updates, expected at least 5 for krum"):
        aggregate(
            updates,
            tmp_path / "round-0" / "weights.safetensors",
            tmp_path / "new",
            AggregationTerms(AggregationSettings(strategy="krum", malicious=1)),
        )
    assert not (tmp_path / "new").exists()

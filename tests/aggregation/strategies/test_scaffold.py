"""The server's part of SCAFFOLD; tests/training/test_scaffold.py covers rounds with clients."""

import numpy as np
import pytest

from zk0.aggregation.strategies.scaffold import Scaffold
from zk0.settings.aggregation_settings import AggregationSettings


def test_step_goes_part_of_the_way_to_the_plain_mean():
    strategy = Scaffold(AggregationSettings(strategy="scaffold", server_lr=0.25))
    weights = strategy.update_weights(np.array([7.0, 1.0]), lambda: np.zeros((2, 2)))
    mean = strategy.combine(np.array([[1.0, 2.0], [3.0, 6.0]], np.float32), weights)
    np.testing.assert_array_equal(mean, [2.0, 4.0])
    new, state = strategy.server_step(mean, np.array([4.0, 4.0], np.float32), [], round_number=1)
    np.testing.assert_array_equal(new, [3.5, 4.0])
    assert state == []


def test_default_learning_rate_is_that_of_the_paper():
    assert Scaffold(AggregationSettings(strategy="scaffold")).server_lr == Scaffold.default_server_lr == 1.0
    assert pytest.approx(0.5) == Scaffold(AggregationSettings(strategy="scaffold", server_lr=0.5)).server_lr

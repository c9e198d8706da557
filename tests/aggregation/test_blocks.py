"""Blocks cover every value; results of several threads come in order, and the first exception stops them."""

import threading
import time

import pytest

from zk0.aggregation.blocks import Block, map_in_order, split_into_blocks
from zk0.weights.tensor_spec import TensorSpec


def test_every_value_is_in_one_block():
    specs = {"a": TensorSpec("float32", (2, 3)), "empty": TensorSpec("float32", (0, 4)), "b": TensorSpec("float32", ())}
    found = list(split_into_blocks(specs, ["b", "empty", "a"], 4))
    assert found == [Block("b", 0, 1), Block("a", 0, 4), Block("a", 4, 2)]


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_results_come_in_order_and_few_are_pending(threads):
    started: list[int] = []

    def work(item: int) -> tuple[int, str]:
        started.append(item)
        time.sleep(0.002 * (item % 3))
        return item, threading.current_thread().name

    found = map_in_order(work, range(50), threads)
    assert next(found)[0] == 0
    assert len(started) <= 2 * threads + 1
    rest = list(found)
    assert [item for item, _ in rest] == list(range(1, 50))
    assert len({name for _, name in rest}) <= threads


@pytest.mark.parametrize("threads", [1, 3])
def test_first_exception_stops_the_threads(threads):
    done: list[int] = []

    def work(item: int) -> int:
        if item >= 4:
            raise ValueError(f"item {item}")
        done.append(item)
        return item

    before = threading.active_count()
    found = map_in_order(work, range(1000), threads)
    with pytest.raises(ValueError, match="item 4"):
        list(found)
    assert done == [0, 1, 2, 3]
    assert threading.active_count() == before

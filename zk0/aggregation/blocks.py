"""Split tensors into blocks, and map a function over them on several threads with results in a fixed order."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from zk0.weights.tensor_spec import TensorSpec


@dataclass(frozen=True)
class Block:
    """`length` values of one flat tensor, from index `start`."""

    name: str
    start: int
    length: int


def split_into_blocks(specs: Mapping[str, TensorSpec], names: Iterable[str], length: int) -> Iterator[Block]:
    """Yield blocks of at most `length` values that cover the named tensors.

    >>> [(b.start, b.length) for b in split_into_blocks({"w": TensorSpec("float32", (5,))}, ["w"], 2)]
    [(0, 2), (2, 2), (4, 1)]
    """
    for name in names:
        for start in range(0, specs[name].size, length):
            yield Block(name, start, min(length, specs[name].size - start))


def map_in_order[T, R](function: Callable[[T], R], items: Iterable[T], threads: int) -> Iterator[R]:
    """Yield `function(item)` of each item in the order of the items, computed on so many threads.

    At most 2 * threads + 1 results wait at a time, so memory does not grow with the items. The first exception is
    raised, and items that no thread has started are dropped.
    """
    if threads == 1:
        yield from map(function, items)
        return
    pool = ThreadPoolExecutor(threads)
    pending: deque[Future[R]] = deque()
    try:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) > 2 * threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)

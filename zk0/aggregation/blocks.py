"""Tensors of many files a block at a time, on several threads, in an order that never changes."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from zk0.tensor_spec import TensorSpec


@dataclass(frozen=True)
class Block:
    """`length` values of one flat tensor, from `start` on."""

    name: str
    start: int
    length: int


def blocks_of(specs: Mapping[str, TensorSpec], names: Iterable[str], length: int) -> Iterator[Block]:
    """Every value of the named tensors once, at most `length` at a time.

    >>> [(b.start, b.length) for b in blocks_of({"w": TensorSpec("float32", (5,))}, ["w"], 2)]
    [(0, 2), (2, 2), (4, 1)]
    """
    for name in names:
        for start in range(0, specs[name].size, length):
            yield Block(name, start, min(length, specs[name].size - start))


def in_order[T, R](work: Callable[[T], R], items: Iterable[T], threads: int) -> Iterator[R]:
    """`work` of each item, done on so many threads, handed out in the order of the items.

    Only a few results wait at a time. The first failure ends it; what was not begun is not done.
    """
    if threads == 1:
        yield from map(work, items)
        return
    pool = ThreadPoolExecutor(threads)
    waiting: deque[Future[R]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) > 2 * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)

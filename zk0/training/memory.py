"""What to do when a batch does not fit into memory: find out what does, and say so."""

from collections.abc import Callable

import torch


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed: on a GPU, by torch on a CPU (a plain RuntimeError), or by numpy.

    >>> is_out_of_memory(MemoryError()), is_out_of_memory(RuntimeError("shapes cannot be multiplied"))
    (True, False)
    """
    by_type = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return by_type or (isinstance(error, RuntimeError) and "can't allocate memory" in str(error))


def most_that_fit(attempt: Callable[[int], None], tried: int) -> int | None:
    """The largest of tried / 2, tried / 4, ... that `attempt` can do; None if not even 1.

    >>> def attempt(count):
    ...     if count > 5: raise MemoryError
    >>> most_that_fit(attempt, 64)
    4
    """
    while tried > 1:
        tried //= 2
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        try:
            attempt(tried)
        except (RuntimeError, MemoryError) as e:
            if not is_out_of_memory(e):
                raise
        else:
            return tried
    return None


def advice(said: str, tried: int, fits: int | None, batch_size: int) -> str:
    """One line: what did not fit, what does, and the setting that makes it so.

    >>> advice("CUDA out of memory. Tried to allocate 2 GiB", 64, 16, batch_size=64)
    'out of memory with 64 frames at once (CUDA out of memory. Tried to allocate 2 GiB); 16 fit: set \
training.accumulate_steps = 4 (same result, in pieces), or training.batch_size = 16'
    """
    line = next(iter(said.splitlines()), "").strip()
    cause = (
        f"out of memory with {tried} frames at once ({line})" if line else f"out of memory with {tried} frames at once"
    )
    if fits is None:
        return f"{cause}; not even 1 fits: free memory on this machine or take another training.device"
    pieces = -(-batch_size // fits)
    return (
        f"{cause}; {fits} fit: set training.accumulate_steps = {pieces} (same result, in pieces), "
        f"or training.batch_size = {fits}"
    )

"""When a batch does not fit into memory: find the batch size that fits, and name the setting to change."""

from collections.abc import Callable

import torch


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the error means that an allocation failed: on a GPU, on a CPU (a plain RuntimeError), or in numpy.

    >>> is_out_of_memory(MemoryError()), is_out_of_memory(RuntimeError("shapes cannot be multiplied"))
    (True, False)
    """
    by_type = isinstance(error, torch.OutOfMemoryError | MemoryError)
    return by_type or (isinstance(error, RuntimeError) and "can't allocate memory" in str(error))


def largest_batch_that_fits(attempt: Callable[[int], None], failed: int) -> int | None:
    """The largest of failed / 2, failed / 4, ... for which `attempt` succeeds; None if even 1 fails.

    >>> def attempt(count):
    ...     if count > 5: raise MemoryError
    >>> largest_batch_that_fits(attempt, 64)
    4
    """
    count = failed
    while count > 1:
        count //= 2
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        try:
            attempt(count)
        except (RuntimeError, MemoryError) as e:
            if not is_out_of_memory(e):
                raise
        else:
            return count
    return None


def out_of_memory_advice(message: str, failed: int, fits: int | None, batch_size: int) -> str:
    """One line: the batch that failed, the batch that fits, and the setting that makes it fit.

    Args:
        message: of the original error.
        failed: frames at once that did not fit.
        fits: frames at once that fit; None: not even one.
        batch_size: `training.batch_size`.

    >>> out_of_memory_advice("CUDA out of memory. Tried to allocate 2 GiB", 64, 16, batch_size=64)
    'out of memory with 64 frames at once (CUDA out of memory. Tried to allocate 2 GiB); 16 fit: set \
training.accumulate_steps = 4 (same result, in pieces), or training.batch_size = 16'
    """
    line = next(iter(message.splitlines()), "").strip()
    cause = f"out of memory with {failed} frames at once" + (f" ({line})" if line else "")
    if fits is None:
        return f"{cause}; not even 1 fits: free memory on this machine or choose another training.device"
    pieces = -(-batch_size // fits)
    return (
        f"{cause}; {fits} fit: set training.accumulate_steps = {pieces} (same result, in pieces), "
        f"or training.batch_size = {fits}"
    )

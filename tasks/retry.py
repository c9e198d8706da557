"""Which failures Prefect retries, and how often."""

import errno
from typing import Any, Final, TypedDict

from zk0.errors import TransientError


class RetryRule(TypedDict):
    """Arguments of `prefect.task`."""

    retries: int
    retry_delay_seconds: float | list[float]
    retry_condition_fn: Any


_PASSING_ERRNOS = frozenset(
    (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EAGAIN, errno.EBUSY, errno.EHOSTDOWN, errno.EHOSTUNREACH)
)
"""What a file system over the network reports while its server is away; a full or read-only disk is not among them."""


async def is_transient(task: Any, run: Any, state: Any) -> bool:
    """Return whether a failed task may succeed when it is called again.

    It raised a TransientError, or the disk failed for a reason that may pass, also where an error of ours reports it.
    """
    try:
        await state.aresult()
    except TransientError:
        return True
    except BaseException as e:  # any other error is not retried; Prefect raises it
        return _is_passing_disk_error(e)
    return False


def _is_passing_disk_error(error: BaseException) -> bool:
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in _PASSING_ERRNOS:
            return True
        cause = cause.__cause__
    return False


HUB_RETRIES: Final = RetryRule(retries=2, retry_delay_seconds=[10, 60], retry_condition_fn=is_transient)
"""Of tasks that load from the Hugging Face Hub: it may be unreachable or overloaded for a minute."""
DISK_RETRIES: Final = RetryRule(retries=2, retry_delay_seconds=[1, 10], retry_condition_fn=is_transient)
"""Of tasks that read or write the session's folder, which may lie on another machine's disk."""
NODE_RETRIES: Final = RetryRule(retries=2, retry_delay_seconds=5, retry_condition_fn=is_transient)
"""Of tasks that wait for nodes."""

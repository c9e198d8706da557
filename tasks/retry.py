"""Which failures Prefect retries, and how often."""

from typing import Any, Final, TypedDict

from zk0.errors import may_pass


class RetryRule(TypedDict):
    """Arguments of `prefect.task`."""

    retries: int
    retry_delay_seconds: float | list[float]
    retry_condition_fn: Any


async def is_transient(task: Any, run: Any, state: Any) -> bool:
    """Return whether a failed task may succeed when it is called again.

    It raised a TransientError, or the disk failed for a reason that may pass, also where an error of ours reports it.
    """
    try:
        await state.aresult()
    except BaseException as e:  # any other error is not retried; Prefect raises it
        return may_pass(e)
    return False


HUB_RETRIES: Final = RetryRule(retries=2, retry_delay_seconds=[10, 60], retry_condition_fn=is_transient)
"""Of tasks that load from the Hugging Face Hub: it may be unreachable or overloaded for a minute."""
DISK_RETRIES: Final = RetryRule(retries=2, retry_delay_seconds=[1, 10], retry_condition_fn=is_transient)
"""Of tasks that read or write the session's folder, which may lie on another machine's disk."""
NODE_RETRIES: Final = RetryRule(retries=2, retry_delay_seconds=5, retry_condition_fn=is_transient)
"""Of tasks that wait for nodes."""

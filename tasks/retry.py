"""Which failures Prefect retries, and how often."""

from typing import Any, Final, TypedDict

from zk0.errors import TransientError


class RetryRule(TypedDict):
    """Arguments of `prefect.task`."""

    retries: int
    retry_delay_seconds: float | list[float]
    retry_condition_fn: Any


async def is_transient(task: Any, run: Any, state: Any) -> bool:
    """Return whether a failed task may succeed when it is called again: it raised a TransientError."""
    try:
        await state.aresult()
    except TransientError:
        return True
    except BaseException:  # any other error is not retried; Prefect raises it
        return False
    return False


HUB_RETRIES: Final = RetryRule(retries=2, retry_delay_seconds=[10, 60], retry_condition_fn=is_transient)
"""Of tasks that load from the Hugging Face Hub: it may be unreachable or overloaded for a minute."""
NODE_RETRIES: Final = RetryRule(retries=2, retry_delay_seconds=5, retry_condition_fn=is_transient)
"""Of tasks that wait for nodes."""

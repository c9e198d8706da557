"""Which failures Prefect retries."""

from typing import Any

from zk0.errors import TransientError


async def is_transient(task: Any, run: Any, state: Any) -> bool:
    """Return whether a failed task may succeed when it is called again: it raised a TransientError."""
    try:
        await state.aresult()
    except TransientError:
        return True
    except BaseException:  # any other error is not retried; Prefect raises it
        return False
    return False

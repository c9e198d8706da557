"""Which failures are worth another try."""

from typing import Any

from zk0.errors import TransientError


async def is_transient(task: Any, run: Any, state: Any) -> bool:
    """Whether the same call may work later; everything else fails at once."""
    try:
        await state.aresult()
    except TransientError:
        return True
    except BaseException:  # any other error decides that there is no retry, and is raised by Prefect
        return False
    return False

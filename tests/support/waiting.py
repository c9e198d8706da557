"""Wait for something that another process or thread does."""

import time
from collections.abc import Callable


def wait_until(condition: Callable[[], bool], timeout_seconds: float = 120) -> None:
    """Return once the condition holds; fail where it does not in time."""
    deadline = time.monotonic() + timeout_seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_seconds:g} s"
        time.sleep(0.05)

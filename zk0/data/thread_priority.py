"""Restore the scheduling of a thread that a video encoder changes."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def restore_thread_priority() -> Iterator[None]:
    """Restore the scheduling policy and priority of this thread at the end of the block.

    SVT-AV1 sets the thread that opens an encoder to SCHED_FIFO 99 if it has the right to (as root, for example in a
    container), and leaves it there. This process and every process that it starts would then run before all others of
    the machine.
    """
    if sys.platform != "linux":
        yield
        return
    policy, parameter = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        yield
    finally:
        os.sched_setscheduler(0, policy, parameter)

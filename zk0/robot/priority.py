"""The scheduling of this thread, which an encoder must not change for good."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def own_priority() -> Iterator[None]:
    """The thread is scheduled afterwards as it was before.

    SVT-AV1 leaves the thread that opens an encoder at SCHED_FIFO 99 where it may (as root, as in a container). From
    then on whatever this process does, and every process that it starts, goes before all others of the machine.
    """
    if sys.platform != "linux":
        yield
        return
    policy, parameter = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        yield
    finally:
        os.sched_setscheduler(0, policy, parameter)

"""Child processes that do not outlive the process that started them."""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def die_with_parent(parent: int, death_signal: signal.Signals = signal.SIGKILL) -> None:
    """Have the kernel signal this process when the thread that started it ends, even by SIGKILL (Linux only).

    Args:
        parent: process id of the parent. Process id 1 is a valid parent in a container.
        death_signal: the signal that this process gets when the parent ends.

    Raises:
        SystemExit: the parent ended before this call.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, death_signal)
    if os.getppid() != parent:
        raise SystemExit("the parent process has ended")

"""What processes of zk0 have in common: they end with their parent, and collect garbage less often."""

import atexit
import ctypes
import gc
import os
import signal
import sys
import threading
import time

_PR_SET_PDEATHSIG = 1
_NEW_OBJECTS = 10_000
"""More of them than were freed start a collection; by default 700."""


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


def end_after_parent(parent: int, seconds: float) -> None:
    """Let this process be killed some time after its parent has ended, if it still runs then.

    A process that gets SIGTERM when its parent ends may wait for ever for a server that has ended too.

    Args:
        parent: the parent's pid, from before the start of this process.
        seconds: from the parent's end to SIGKILL.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        time.sleep(seconds)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="zk0-parent", daemon=True).start()


def collect_garbage_less_often() -> None:
    """Let this process collect garbage less often: LeRobot and PyTorch are then imported in a quarter less CPU time.

    Imports make half a million objects that stay, and with Python's default they are searched again and again. At the
    end of the process they are not searched at all, which takes 3 s of CPU time.
    """
    gc.set_threshold(_NEW_OBJECTS, *gc.get_threshold()[1:])
    atexit.unregister(gc.freeze)
    atexit.register(gc.freeze)

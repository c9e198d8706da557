"""A warm worker process of the local engine: `python -m zk0.federation.worker FD PARENT_PID`.

It reads (message, context) from a pipe, lets the ClientApp answer, and tells of steps in between. It dies
with the process that started it.
"""

import ctypes
import os
import signal
import sys
from multiprocessing.connection import Connection

_PR_SET_PDEATHSIG = 1


def die_with_parent(parent: int) -> None:
    """Linux kills this process when the thread that started it ends, even by SIGKILL."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before we asked; 1 may well be its number, in a container
        raise SystemExit("the process that started this worker is gone")


def serve(connection: Connection) -> None:
    """Answer messages until the pipe closes or None arrives."""
    from flwr.app import Error, Message

    import zk0.training.client  # noqa: F401 -- takes seconds: paid while the worker starts, not with its first message
    from zk0.federation import client_app

    client_app.listen(lambda *step: connection.send(("step", step)))
    connection.send(("ready", os.getpid()))
    while (job := connection.recv()) is not None:
        message, context = job
        try:
            reply = client_app.app(message, context)
        except Exception as e:  # carried to the driver, which refuses this client's answer
            reply = Message(Error(2, f"{type(e).__name__}: {e}"), reply_to=message)
        connection.send(("reply", (reply, context)))


if __name__ == "__main__":
    die_with_parent(int(sys.argv[2]))
    try:
        serve(Connection(int(sys.argv[1])))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        sys.exit(0)

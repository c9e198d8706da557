"""Processes in which clients train: `python -m zk0.federation.worker FD PARENT_PID [serve]`.

Without `serve` it is a fork server: it imports what a client needs, which takes many seconds, once, and then forks a
worker in milliseconds as often as it is asked to. A worker reads (message, context) from a pipe, lets the ClientApp
answer, and tells of steps in between. All of them die with the process that started them.
"""

import ctypes
import gc
import os
import signal
import socket
import sys
import warnings
from multiprocessing.connection import Connection

FORK, WAIT = b"f", b"w"
NUMBER_BYTES = 8
"""Of a process id or an exit code on the line, big-endian and signed."""

_PR_SET_PDEATHSIG = 1
_CUDA_ERROR_NOT_INITIALIZED = 3


def die_with_parent(parent: int) -> None:
    """Linux kills this process when the thread that started it ends, even by SIGKILL."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before we asked; 1 may well be its number, in a container
        raise SystemExit("the process that started this worker is gone")


def serve(connection: Connection) -> None:
    """Answer messages until the pipe closes or None arrives."""
    import zk0.training.client  # noqa: F401 -- takes seconds: paid while the worker starts, not with its first message
    from zk0.diagnostics import libraries_logged
    from zk0.federation import client_app

    client_app.listen(lambda *step: connection.send(("step", step)))
    connection.send(("ready", os.getpid()))
    with libraries_logged():
        while (job := connection.recv()) is not None:
            message, context = job
            reply = client_app.app(message, context)
            connection.send(("reply", (reply, context)))


def serve_until_closed(handle: int) -> None:
    """The whole life of a worker."""
    try:
        serve(Connection(handle))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        sys.exit(0)


def fork_workers(line: socket.socket) -> None:
    """Fork worker number N for each pair of descriptors (its pipe, its log) that comes; say how one ended when asked.

    With several GPUs each worker sees one of them, worker N the one whose turn it is.
    """
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # asking for a GPU must not wake CUDA here
    import zk0.federation.client_app
    import zk0.training.client  # noqa: F401

    gc.freeze()  # what is here already is never collected, so workers go on sharing its memory
    line.sendall(FORK)
    workers = set[int]()
    while (asked := socket.recv_fds(line, 1 + NUMBER_BYTES, 2))[0]:
        number = int.from_bytes(asked[0][1:], signed=True)
        if asked[0][:1] == FORK:
            workers.add(answer := _fork(line, number, *asked[1]))
        else:
            workers.remove(number)
            answer = _exit_code(number)
        line.sendall(answer.to_bytes(NUMBER_BYTES, signed=True))
    for pid in workers:
        os.kill(pid, signal.SIGKILL)
        _exit_code(pid)


def _exit_code(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _fork(line: socket.socket, number: int, pipe: int, log: int) -> int:
    from zk0.federation.gpu import gpu_of, visible_gpus

    server, gpus = os.getpid(), visible_gpus()
    with warnings.catch_warnings():  # of threads: those here are the allocator's and BLAS's, which are made for it
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid:
        os.close(pipe)
        os.close(log)
        return pid
    code = 1
    try:
        line.close()
        os.dup2(log, 1)
        os.dup2(log, 2)
        die_with_parent(server)
        if gpus:
            os.environ["CUDA_VISIBLE_DEVICES"] = gpu_of(number, gpus)
        if not _survives_fork():
            os.set_inheritable(pipe, True)
            os.execv(sys.executable, [sys.executable, "-m", "zk0.federation.worker", str(pipe), str(server), "serve"])
        serve_until_closed(pipe)
        code = 0
    except SystemExit as e:
        code = 0 if not e.code else 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _survives_fork() -> bool:
    """Whether what is imported works in a forked process: CUDA that is awake does not, nor do Apple's frameworks."""
    if sys.platform != "linux":
        return False
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return True
    count = ctypes.c_int()
    return bool(cuda.cuDeviceGetCount(ctypes.byref(count)) == _CUDA_ERROR_NOT_INITIALIZED)


if __name__ == "__main__":
    die_with_parent(int(sys.argv[2]))
    if sys.argv[3:] == ["serve"]:
        serve_until_closed(int(sys.argv[1]))
    else:
        with socket.socket(fileno=int(sys.argv[1])) as to_parent:
            fork_workers(to_parent)

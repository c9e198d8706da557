"""Processes in which clients train: `python -m zk0.federation.engines.worker FD PARENT_PID [serve]`.

Without `serve` it is a fork server: it imports once what a client needs, which takes many seconds, and then forks a
worker in milliseconds on each request. A worker reads (message, context) from a connection, calls the ClientApp, and
sends progress and the reply. All these processes end with the process that started them (decision 0020).
"""

import ctypes
import gc
import os
import signal
import socket
import sys
import warnings
from multiprocessing.connection import Connection

from zk0.processes import collect_garbage_less_often, die_with_parent, search_packages_once

FORK, EXIT_CODE = b"f", b"w"
"""Requests to the fork server: fork worker number N; wait for process N and return its exit code."""
NUMBER_BYTES = 8
"""Size of a number in requests and responses, big-endian and signed."""

_CUDA_ERROR_NOT_INITIALIZED = 3


def serve_client_app(connection: Connection) -> None:
    """Handle messages until the connection closes or None arrives."""
    import zk0.client.client  # noqa: F401 -- takes seconds: while the worker starts, not with its first message
    from zk0.diagnostics import forward_library_logs
    from zk0.federation.protocol.client_app import flower_client_app, set_progress_listener
    from zk0.log_text import write_clean_logs

    write_clean_logs()
    set_progress_listener(lambda *step: connection.send(("step", step)))
    connection.send(("ready", os.getpid()))
    with forward_library_logs():
        while (job := connection.recv()) is not None:
            message, context = job
            reply = flower_client_app(message, context)
            connection.send(("reply", (reply, context)))


def run_worker(descriptor: int) -> None:
    """Run a worker on the connection of a file descriptor; exit when the other end closes it."""
    try:
        serve_client_app(Connection(descriptor))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        sys.exit(0)


def run_fork_server(parent: socket.socket) -> None:
    """Answer FORK and EXIT_CODE requests until the parent closes the socket; then kill the workers.

    A FORK request carries two file descriptors: the worker's connection and its log. With several GPUs each worker sees
    one of them, by its number.
    """
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # counting GPUs must not initialize CUDA here
    import zk0.client.client
    import zk0.federation.protocol.client_app  # noqa: F401

    gc.freeze()  # the collector leaves these objects alone, so workers go on sharing their memory pages
    parent.sendall(FORK)
    workers = set[int]()
    while (received := socket.recv_fds(parent, 1 + NUMBER_BYTES, 2))[0]:
        number = int.from_bytes(received[0][1:], signed=True)
        if received[0][:1] == FORK:
            workers.add(answer := _fork_worker(parent, number, *received[1]))
        else:
            workers.remove(number)
            answer = _wait_for_exit_code(number)
        parent.sendall(answer.to_bytes(NUMBER_BYTES, signed=True))
    for pid in workers:
        os.kill(pid, signal.SIGTERM)
        _wait_for_exit_code(pid)


def _wait_for_exit_code(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _fork_worker(parent: socket.socket, number: int, connection: int, log: int) -> int:
    from zk0.training.gpu_share import gpu_for_worker, visible_gpus

    server, gpus = os.getpid(), visible_gpus()
    with (
        warnings.catch_warnings()
    ):  # about threads: those of this process belong to the allocator and BLAS, which allow it
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid:
        os.close(connection)
        os.close(log)
        return pid
    code = 1
    try:
        parent.close()
        os.dup2(log, 1)
        os.dup2(log, 2)
        die_with_parent(server)
        if gpus:
            os.environ["CUDA_VISIBLE_DEVICES"] = gpu_for_worker(number, gpus)
        if not _is_fork_safe():
            os.set_inheritable(connection, True)
            module = "zk0.federation.engines.worker"
            os.execv(sys.executable, [sys.executable, "-m", module, str(connection), str(server), "serve"])
        run_worker(connection)
        code = 0
    except SystemExit as e:
        code = 0 if not e.code else 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _is_fork_safe() -> bool:
    """Return whether imported libraries work in a forked process: initialized CUDA and Apple's frameworks do not."""
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
    collect_garbage_less_often()
    search_packages_once()
    if sys.argv[3:] == ["serve"]:
        run_worker(int(sys.argv[1]))
    else:
        with socket.socket(fileno=int(sys.argv[1])) as parent_socket:
            run_fork_server(parent_socket)

"""Sharing a GPU between clients: file locks limit how many clients of this machine work on a GPU at a time.

`training.gpu_share` is the share of a GPU that a client holds while it trains or evaluates. A client waits until its
share is free, whichever process or session of this machine holds the rest.
"""

import fcntl
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from math import ceil
from pathlib import Path
from typing import BinaryIO

from zk0.settings.training_settings import LocalTrainingSettings

SLOTS_PER_GPU = 12
"""Each GPU has twelve slots, so 1/2, 1/3, 1/4 and 1/6 of a GPU are whole numbers of slots."""

_POLL_SECONDS = 0.05


def max_concurrent_clients(gpus: int, share: float) -> int:
    """How many clients can work at the same time on `gpus` GPUs, each on one of them.

    >>> max_concurrent_clients(1, 1.0), max_concurrent_clients(2, 0.5), max_concurrent_clients(2, 0.3)
    (1, 4, 6)
    """
    return gpus * (SLOTS_PER_GPU // slots_for(share))


def slots_for(share: float) -> int:
    """Number of slots that a client with this share of a GPU holds, rounded up.

    >>> slots_for(1.0), slots_for(0.5), slots_for(0.3), slots_for(0.01)
    (12, 6, 4, 1)
    """
    return max(1, ceil(share * SLOTS_PER_GPU - 1e-9))


def gpu_for_worker(worker: int, gpus: Sequence[str]) -> str:
    """The GPU of a worker process, by its number: workers are distributed round-robin.

    >>> [gpu_for_worker(worker, ("2", "3")) for worker in range(3)]
    ['2', '3', '2']
    """
    return gpus[worker % len(gpus)]


def visible_gpus() -> tuple[str, ...]:
    """The GPUs that this process may use, named as in CUDA_VISIBLE_DEVICES."""
    import torch

    count, named = torch.cuda.device_count(), os.environ.get("CUDA_VISIBLE_DEVICES")
    return tuple(named.split(",")[:count]) if named else tuple(map(str, range(count)))


@contextmanager
def acquire_gpu_share(
    gpu: str, share: float, on_wait: Callable[[], None], folder: Path | None = None
) -> Iterator[None]:
    """Hold a share of a GPU inside the block; wait for it while others hold too much.

    Each slot is a locked file; the system releases the locks of a process that dies. A waiting client holds the
    queue's lock, so clients with a small share do not overtake one that needs the whole GPU.

    Args:
        gpu: its name among all processes of this machine, as in CUDA_VISIBLE_DEVICES.
        share: of the GPU, above 0 and at most 1.
        on_wait: called once if the client has to wait.
        folder: of the lock files; None: one folder for all sessions of this user.
    """
    locks = folder or lock_folder()
    locks.mkdir(mode=0o700, parents=True, exist_ok=True)
    with ExitStack() as held:
        with (locks / f"{gpu}.queue").open("ab") as queue:
            if not _try_lock(queue):
                on_wait()
                on_wait = _do_nothing
                fcntl.flock(queue, fcntl.LOCK_EX)
            while (slots := _try_slots(locks, gpu, slots_for(share))) is None:
                on_wait()
                on_wait = _do_nothing
                time.sleep(_POLL_SECONDS)
            held.enter_context(slots)
        yield


@contextmanager
def gpu_share_for(training: LocalTrainingSettings, on_wait: Callable[[], None]) -> Iterator[None]:
    """Hold `training.gpu_share` of this process's GPU inside the block, if training uses one.

    The memory that torch keeps on the GPU stays with this process until another one needs it (`ReservedMemory`).
    """
    if not shares_gpu(training):
        yield
        return
    with acquire_gpu_share(own_gpu(), training.gpu_share, on_wait):
        yield


def own_gpu() -> str:
    """The GPU of this process, by its name among all processes of this machine."""
    return os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]


def lock_folder() -> Path:
    """The folder of lock files, one for all sessions of this user."""
    return Path(tempfile.gettempdir()) / f"zk0-gpus-{os.getuid()}"


def shares_gpu(training: LocalTrainingSettings) -> bool:
    """Whether clients train on a GPU of this machine and wait for each other there."""
    from zk0.training.device import pick_device  # takes seconds

    return training.gpu_share > 0 and pick_device(training.device) == "cuda"


def max_useful_workers(training: LocalTrainingSettings) -> int | None:
    """How many worker processes can train at once: more would only hold GPU memory. None: no limit."""
    if not shares_gpu(training):
        return None
    return max_concurrent_clients(len(visible_gpus()), training.gpu_share)


def _try_slots(locks: Path, gpu: str, count: int) -> ExitStack | None:
    """Lock `count` slots of a GPU; None, with no lock held, if fewer are free."""
    with ExitStack() as stack:
        locked = 0
        for number in range(SLOTS_PER_GPU):
            file = stack.enter_context((locks / f"{gpu}.{number}").open("ab"))
            if _try_lock(file):
                locked += 1
                if locked == count:
                    return stack.pop_all()
            else:
                file.close()
    return None


def _try_lock(file: BinaryIO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _do_nothing() -> None:
    """Replaces `on_wait` after its first call."""

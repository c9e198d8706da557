"""Clients that share a GPU wait for each other, whichever process or session of this machine they belong to."""

import fcntl
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from math import ceil
from pathlib import Path
from typing import BinaryIO

from zk0.session import TrainingSettings

PARTS = 12
"""A GPU is lent in twelfths: a half, a third, a quarter and a sixth are whole numbers of them."""

_POLL_SECONDS = 0.05


def clients_at_once(gpus: int, share: float) -> int:
    """How many clients may work at the same time on so many GPUs, each on one of them.

    >>> clients_at_once(1, 1.0), clients_at_once(2, 0.5), clients_at_once(2, 0.3)
    (1, 4, 6)
    """
    return gpus * (PARTS // parts(share))


def parts(share: float) -> int:
    """Twelfths of a GPU that a client takes.

    >>> parts(1.0), parts(0.5), parts(0.3), parts(0.01)
    (12, 6, 4, 1)
    """
    return max(1, ceil(share * PARTS - 1e-9))


def gpu_of(worker: int, gpus: Sequence[str]) -> str:
    """The GPU of a worker, by its number: they are dealt out in turn.

    >>> [gpu_of(worker, ("2", "3")) for worker in range(3)]
    ['2', '3', '2']
    """
    return gpus[worker % len(gpus)]


def visible_gpus() -> tuple[str, ...]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    count, named = torch.cuda.device_count(), os.environ.get("CUDA_VISIBLE_DEVICES")
    return tuple(named.split(",")[:count]) if named else tuple(map(str, range(count)))


@contextmanager
def turn(gpu: str, share: float, on_wait: Callable[[], None], folder: Path | None = None) -> Iterator[None]:
    """Hold a share of a GPU; wait for it as long as others hold too much of it.

    What is held are locks on files, which the system takes from a process that dies. Who waits holds the gate, so
    those who ask for little do not overtake one who asks for all.

    Args:
        gpu: its name among all processes of this machine, as in CUDA_VISIBLE_DEVICES.
        share: of it, above 0 and at most 1.
        on_wait: called once, if it must wait.
        folder: where the locks lie; one for all sessions of this user, if it is not given.
    """
    place = folder or Path(tempfile.gettempdir()) / f"zk0-gpus-{os.getuid()}"
    place.mkdir(mode=0o700, parents=True, exist_ok=True)
    with ExitStack() as held:
        with (place / f"{gpu}.gate").open("ab") as gate:
            if not _locked(gate):
                on_wait()
                on_wait = _ignore
                fcntl.flock(gate, fcntl.LOCK_EX)
            while (taken := _take(place, gpu, parts(share))) is None:
                on_wait()
                on_wait = _ignore
                time.sleep(_POLL_SECONDS)
            held.enter_context(taken)
        yield


@contextmanager
def gpu_turn(training: TrainingSettings, on_wait: Callable[[], None]) -> Iterator[None]:
    """A turn on this process's GPU, if training uses one; what it held in reserve there is given back afterwards."""
    if not takes_turns(training):
        yield
        return
    import torch

    gpu = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    with turn(gpu, training.gpu_share, on_wait):
        try:
            yield
        finally:
            torch.cuda.empty_cache()


def takes_turns(training: TrainingSettings) -> bool:
    """Whether clients train on a GPU of this machine and wait for each other there."""
    from zk0.training.device import pick_device  # takes seconds

    return training.gpu_share > 0 and pick_device(training.device) == "cuda"


def useful_workers(training: TrainingSettings) -> int | None:
    """How many processes can train at once here: more would only hold memory of a GPU. None: as many as you like."""
    if not takes_turns(training):
        return None
    return clients_at_once(len(visible_gpus()), training.gpu_share)


def _take(place: Path, gpu: str, wanted: int) -> ExitStack | None:
    """So many parts at once, or none of them."""
    with ExitStack() as stack:
        count = 0
        for number in range(PARTS):
            file = stack.enter_context((place / f"{gpu}.{number}").open("ab"))
            if _locked(file):
                count += 1
                if count == wanted:
                    return stack.pop_all()
            else:
                file.close()
    return None


def _locked(file: BinaryIO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _ignore() -> None:
    """Waiting is told once."""

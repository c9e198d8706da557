"""Memory of a GPU that PyTorch keeps between the turns of a process, until another process of this machine needs it.

PyTorch keeps freed memory for its next allocations, which makes the next turn faster, but no other process can allocate
it. Therefore each process that uses a GPU holds a lock on a file of its own. A process that begins to use the GPU asks
the others for what they keep, and waits until each of them has given it back.
"""

import fcntl
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from loguru import logger

_POLL_SECONDS = 0.1
_WAIT_SECONDS = 10.0
"""For a process that has stopped: it gives nothing back."""


class ReservedMemory:
    """The memory that this process keeps on one GPU.

    Args:
        folder: of the lock files, one for all processes of this user.
        gpu: its name among all processes of this machine.
        release: gives the memory back that is kept and not in use; called by a thread.
    """

    def __init__(self, folder: Path, gpu: str, release: Callable[[], None]) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder, self._gpu, self._release = folder, gpu, release
        self._wanted = folder / f"{gpu}.wanted"
        self._watcher: threading.Thread | None = None
        self._asks = False

    def claim(self) -> None:
        """Let all other processes give back what they keep on this GPU; from now on this one does so, too."""
        if self._watcher is None:
            own = (self._folder / f"{self._gpu}.memory.{os.getpid()}").open("ab")
            fcntl.flock(own, fcntl.LOCK_EX)
            self._watcher = threading.Thread(target=self._watch, args=(own,), daemon=True, name="zk0-gpu-memory")
            self._watcher.start()
        with self._wanted.open("ab") as wanted:
            while others := list(self._others()):
                if _try_lock(wanted, fcntl.LOCK_EX):
                    self._asks = True
                    self._wait_for(others)
                    self._asks = False
                    return
                time.sleep(_POLL_SECONDS)  # another process asks, and this one answers

    def _others(self) -> Iterator[Path]:
        """The files of other processes; those of processes that have ended are removed."""
        for file in self._folder.glob(f"{self._gpu}.memory.*"):
            pid = file.suffix.removeprefix(".")
            if not Path(f"/proc/{pid}").exists():
                file.unlink(missing_ok=True)
            elif pid != str(os.getpid()):
                yield file

    def _wait_for(self, others: list[Path]) -> None:
        deadline = time.monotonic() + _WAIT_SECONDS
        for path in others:
            with suppress(FileNotFoundError), path.open("rb") as file:
                while not _try_lock(file, fcntl.LOCK_SH):
                    if time.monotonic() > deadline:
                        logger.warning("{}: its process does not give back what it keeps on the GPU", path.name)
                        return
                    time.sleep(_POLL_SECONDS)

    def _watch(self, own: BinaryIO) -> None:
        """Give the memory back whenever another process asks for it."""
        with own, self._wanted.open("ab") as wanted:
            while True:
                time.sleep(_POLL_SECONDS)
                if _try_lock(wanted, fcntl.LOCK_SH):
                    fcntl.flock(wanted, fcntl.LOCK_UN)
                    continue
                if self._asks:
                    continue
                self._release()
                fcntl.flock(own, fcntl.LOCK_UN)
                fcntl.flock(wanted, fcntl.LOCK_SH)  # until the other process has asked all
                fcntl.flock(wanted, fcntl.LOCK_UN)
                fcntl.flock(own, fcntl.LOCK_EX)


def _try_lock(file: BinaryIO, kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True

"""Datasets with the URI `sim:task`: demonstrations of the scripted expert, recorded once and cached."""

import fcntl
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from zk0.data.dataset_writer import RecordedFrame, write_dataset
from zk0.data.locate import locate
from zk0.errors import DatasetError
from zk0.settings.dataset_settings import SO101_JOINTS, SimulatorSettings
from zk0.simulator.tasks import FPS, ROBOT_TYPE, SIMULATOR_SCHEME

RECORDINGS = "demonstrations"
"""Folder of the recordings in the cache."""


def _go_on() -> None:
    """Do nothing after an episode."""


def locate_or_record(
    uri: str, cache: Path, simulator: SimulatorSettings, on_episode: Callable[[], None] = _go_on
) -> Path:
    """Return the folder of any dataset; a `sim:` dataset is recorded first if the cache does not have it.

    Args:
        uri: `sim:task`, or what `zk0.data.locate` takes.
        cache: folder of downloads and recordings.
        simulator: decides what is recorded.
        on_episode: called after each recorded episode; an error of it ends the recording, which is removed then.

    Raises:
        DatasetError: the dataset is missing or cannot be fetched.
        SimulatorError: there is no such task, nothing can be rendered, or the expert fails.
    """
    if not uri.startswith(SIMULATOR_SCHEME):
        return locate(uri, cache)
    from zk0.simulator.demonstrations import demonstration_key

    task = uri.removeprefix(SIMULATOR_SCHEME)
    simulator = with_task_seeds(task, simulator)
    target = cache / RECORDINGS / f"{task}-{demonstration_key(task, simulator)[:16]}"
    with _exclusive_lock(target.with_suffix(".lock")):
        if not target.is_dir():
            _record(task, simulator, target, on_episode)
    return target


def with_task_seeds(task: str, simulator: SimulatorSettings) -> SimulatorSettings:
    """Return the settings with seeds that no other task uses.

    Equal seeds place the cubes alike, so the expert's motions for two colors would be the same episodes.

    >>> first = SimulatorSettings().first_seed
    >>> with_task_seeds("lift-red", SimulatorSettings()).first_seed > first + 100_000
    True
    """
    offset = 100_000 * (1 + zlib.crc32(task.encode()) % 10_000)
    return simulator.model_copy(update={"first_seed": simulator.first_seed + offset})


def _record(task: str, simulator: SimulatorSettings, target: Path, on_episode: Callable[[], None]) -> None:
    from zk0.simulator.demonstrations import demonstrate

    def episodes() -> Iterator[Sequence[RecordedFrame]]:
        for demonstration in demonstrate(task, simulator):
            yield demonstration.frames
            on_episode()

    written = write_dataset(target, episodes(), fps=FPS, joints=SO101_JOINTS, robot_type=ROBOT_TYPE)
    if written != simulator.episodes:
        raise DatasetError(f"{target}: {written} episodes recorded, expected {simulator.episodes}")


@contextmanager
def _exclusive_lock(lock: Path) -> Iterator[None]:
    """Hold a file lock, so that two processes do not record the same dataset at once."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield

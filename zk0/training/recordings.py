"""`sim:task` data sets: recorded by the simulator's scripted expert once, kept by what asked for them."""

import fcntl
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from zk0.errors import DatasetError
from zk0.robot.dataset import RecordedFrame, write_dataset
from zk0.robot.locate import locate
from zk0.session import SO101_JOINTS, SimulatorSettings

SCHEME = "sim:"


def find_dataset(uri: str, cache: Path, simulator: SimulatorSettings) -> Path:
    """The folder of any data set; one of the simulator is recorded first if it is not kept already.

    Raises:
        DatasetError: it is missing or cannot be fetched.
        SimulatorError: there is no such task, nothing can be rendered, or the expert fails.
    """
    if not uri.startswith(SCHEME):
        return locate(uri, cache)
    from zk0.simulator.demonstrate import demonstration_key

    task = uri.removeprefix(SCHEME)
    simulator = with_own_seeds(task, simulator)
    target = cache / "demonstrations" / f"{task}-{demonstration_key(task, simulator)[:16]}"
    with _alone(target.with_suffix(".lock")):
        if not target.is_dir():
            _record(task, simulator, target)
    return target


def with_own_seeds(task: str, simulator: SimulatorSettings) -> SimulatorSettings:
    """The same settings with seeds that no other task uses: equal seeds place the cubes alike, and the expert's
    motions for two colours would then be the very same episodes.

    >>> first = SimulatorSettings().first_seed
    >>> with_own_seeds("lift-red", SimulatorSettings()).first_seed > first + 100_000
    True
    """
    offset = 100_000 * (1 + zlib.crc32(task.encode()) % 10_000)
    return simulator.model_copy(update={"first_seed": simulator.first_seed + offset})


def _record(task: str, simulator: SimulatorSettings, target: Path) -> None:
    from zk0.simulator.demonstrate import demonstrate
    from zk0.simulator.task import FPS

    def episodes() -> Iterator[Sequence[RecordedFrame]]:
        for demonstration in demonstrate(task, simulator):
            yield [RecordedFrame(f.state, f.action, f.images, f.task) for f in demonstration.frames]

    written = write_dataset(target, episodes(), fps=FPS, joints=SO101_JOINTS, robot_type="so101_follower")
    if written != simulator.episodes:
        raise DatasetError(f"{target}: {written} episodes recorded, expected {simulator.episodes}")


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield

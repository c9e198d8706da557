import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import hub
import numpy as np
import pytest
from loguru import logger

from zk0.processes import collect_garbage_less_often, search_packages_once

pytest_plugins = ["policy_fixtures"]

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("MPLBACKEND", "agg")
os.environ.setdefault("HF_XET_CLIENT_RETRY_MAX_ATTEMPTS", "1")
os.environ.setdefault("HF_XET_CLIENT_RETRY_BASE_DELAY", "10ms")
os.environ.setdefault("HF_XET_TELEMETRY_ENABLED", "0")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # the same bits in every process

collect_garbage_less_often()
search_packages_once()
TOGETHER = (
    tuple(f"flows/test_{name}.py" for name in ("session_deployment", "deployments", "release", "schedule")),
    ("federation/engines/test_deployment_faults.py",),
    tuple(
        f"flows/test_{name}.py"
        for name in (
            "resume",
            "buffered",
            "data_intake",
            "so100",
            "so100_full_size",
            "task_retries",
            "own_errors",
            "session_location",
        )
    ),
    tuple(f"flows/test_{name}.py" for name in ("nightly", "versus", "own_origin")),
    tuple(
        f"federation/{name}.py"
        for name in (
            "engines/test_engines",
            "engines/test_buffered_engines",
            "engines/test_secure_engines",
            "protocol/test_replies",
            "engines/test_faults",
        )
    ),
    ("flows/test_network.py",),
    (
        "training/test_lora.py",
        "policy/test_policy.py",
        "training/test_full_geometry.py",
    ),
    *((f"flows/test_{name}.py",) for name in ("bench", "tuning")),
    ("federation/engines/test_hostile_nodes.py",),
    ("federation/engines/test_deployment.py",),
)
"""Files that share servers, engines or the policy of 450M parameters, which take long to start or to build, and files
that take long by themselves; those that take longest come first, so that none of them is alone at the end."""
SHARED = {"local_prefect", "prefect_api", "engine", "local_engine", "ray_engine", "full_base"}
SIDE, FPS = 64, 10
Record = Callable[..., Path]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Distribute as `--dist loadfile`, but keep the files of a group of `TOGETHER` in one worker, long groups first."""
    from xdist.scheduler import LoadFileScheduling

    class Together(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return next((files[0] for files in TOGETHER if file.removeprefix("tests/") in files), file)

    if config.getvalue("dist") != "loadfile":
        return None
    config.option.loadscopereorder = False
    return Together(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort tests: first the files of `TOGETHER` in their order, then the others as they were found."""
    order = [Path(__file__).parent / file for files in TOGETHER for file in files]
    for item in items:
        if item.path not in order and SHARED & {*item.fixturenames}:
            raise pytest.UsageError(f"{item.nodeid}: uses what several files share; name its file in TOGETHER")
    items.sort(key=lambda item: order.index(item.path) if item.path in order else len(order))


@pytest.fixture(scope="session")
def record() -> Record:
    """Return a function that writes a small SO-101 dataset; equal seeds give equal frames."""
    from zk0.data.dataset_writer import RecordedFrame, write_dataset
    from zk0.settings.dataset_settings import SO101_JOINTS

    def episode(rng: np.random.Generator, length: int, cameras: Sequence[str], tasks: Sequence[str]) -> Iterator:
        phase, reach = rng.uniform(0, 6, 6), rng.uniform(20, 80, 6)
        grey, task = rng.integers(0, 120, (SIDE, SIDE, 3), dtype=np.uint8), tasks[int(rng.integers(len(tasks)))]
        for t in range(length):
            images = {}
            for number, camera in enumerate(cameras):
                image = np.roll(grey, 5 * number + t, axis=1).copy()
                image[2 * t : 2 * t + 16, 10 + 8 * number : 40] = 230
                images[camera] = image
            state = (reach * np.sin(t / 4 + phase)).astype(np.float32)
            action = (reach * np.sin((t + 2) / 4 + phase)).astype(np.float32)
            yield RecordedFrame(state, action, images, task)

    def write(
        target: Path,
        seed: int,
        lengths: Sequence[int] = (12, 15, 13),
        cameras: Sequence[str] = ("overhead", "wrist"),
        tasks: Sequence[str] = ("Lift the red cube.", "Push it."),
    ) -> Path:
        rng = np.random.default_rng(seed)
        episodes = (list(episode(rng, length, cameras, tasks)) for length in lengths)
        write_dataset(target, episodes, fps=FPS, joints=SO101_JOINTS, robot_type="so101_follower")
        return target

    return write


@pytest.fixture(scope="session")
def recordings(record: Record, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return the datasets of three clients (a, b, c) and of an evaluation set; no test changes them."""
    folder = tmp_path_factory.mktemp("recordings")
    lengths = {"a": (12, 15, 13), "b": (14, 12), "c": (12, 12, 16), "evaluation": (13, 12, 17)}
    return {name: record(folder / name, seed, lengths[name]) for seed, name in enumerate(lengths)}


@pytest.fixture(scope="session")
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cache that tests share: the tiny policy's tokenizer, and features of the recordings."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder with real recordings."""
    folder = os.environ.get("ZK0_REAL_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("no real recordings: ZK0_REAL_DATA names no folder")
    return Path(folder)


@pytest.fixture(scope="session")
def images() -> None:
    """Skip a test of images on a machine that cannot render."""
    from zk0.simulator.rendering import INSTALL_HINT, choose_backend

    if choose_backend(required=False) is None:
        pytest.skip(f"no OpenGL backend renders here: {INSTALL_HINT}")


@pytest.fixture
def hub_server() -> Iterator[Any]:
    """A Hub on loopback that huggingface_hub can talk to."""
    with hub.running_hub() as running:
        yield running


@pytest.fixture
def log_lines() -> Iterator[list[str]]:
    """The lines that are logged."""
    lines: list[str] = []
    sink = logger.add(lambda line: lines.append(str(line)), format="{message}")
    yield lines
    logger.remove(sink)

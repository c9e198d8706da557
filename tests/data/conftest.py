import shutil
from collections.abc import Callable
from pathlib import Path

import defects as known_defects
import pytest
from healthy_dataset import Breaker, write_healthy_dataset


@pytest.fixture(scope="session")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The dataset without a fault; no test changes it."""
    root = tmp_path_factory.mktemp("data") / "healthy"
    write_healthy_dataset(root)
    return root


@pytest.fixture
def copy(healthy: Path, tmp_path: Path) -> Path:
    """A copy of the healthy dataset, to be broken."""
    return Path(shutil.copytree(healthy, tmp_path / "copy"))


@pytest.fixture
def breaker(copy: Path) -> Breaker:
    return Breaker(copy)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "defect" in metafunc.fixturenames:
        metafunc.parametrize("defect", known_defects.CASES.values(), ids=known_defects.CASES)


@pytest.fixture(scope="session")
def defects() -> dict[str, tuple[set[str], Callable]]:
    """Name -> the rules that are broken, and the function that breaks the healthy dataset that way."""
    return known_defects.CASES

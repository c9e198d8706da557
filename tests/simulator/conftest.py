import pytest

from zk0.session import SimulatorSettings
from zk0.simulator.rendering import REMEDY, choose_backend


@pytest.fixture(scope="session")
def images() -> None:
    """Skips a test of images on a machine that cannot render any."""
    if choose_backend(required=False) is None:
        pytest.skip(f"no OpenGL backend renders here: {REMEDY}")


@pytest.fixture
def settings() -> SimulatorSettings:
    return SimulatorSettings()

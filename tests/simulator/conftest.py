import pytest

from zk0.settings.dataset_settings import SimulatorSettings


@pytest.fixture
def settings() -> SimulatorSettings:
    return SimulatorSettings()

import pytest


@pytest.fixture(scope="session")
def images() -> None:
    """Skip a test of images on a machine that cannot render."""
    from zk0.simulator.rendering import INSTALL_HINT, choose_backend

    if choose_backend(required=False) is None:
        pytest.skip(f"no OpenGL backend renders here: {INSTALL_HINT}")

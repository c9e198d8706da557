import os
import subprocess
import sys

import pytest

from zk0.errors import RendererUnavailable, SimulatorError, may_pass
from zk0.simulator import rendering
from zk0.simulator.rendering import BACKENDS, choose_backend, probe_backend

pytestmark = pytest.mark.usefixtures("images")


@pytest.fixture
def unset(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """MUJOCO_GL unset, and restored after the test."""
    monkeypatch.setenv("MUJOCO_GL", "")
    return monkeypatch


@pytest.fixture
def broken(unset: pytest.MonkeyPatch) -> None:
    """Both backends fail to load: each requires a PyOpenGL platform of its own."""
    unset.setenv("PYOPENGL_PLATFORM", "glx")


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {k: v for k, v in os.environ.items() if k not in ("MUJOCO_GL", "PYOPENGL_PLATFORM")}
    return subprocess.run(
        [sys.executable, "-c", code], env=inherited | environment, capture_output=True, text=True, check=False
    )


@pytest.fixture
def fresh(unset: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """No PyOpenGL platform is set by earlier renderings of this process, so the first backend can be chosen."""
    unset.delenv("PYOPENGL_PLATFORM", raising=False)
    return unset


def test_the_first_backend_that_renders_is_chosen_and_stored(fresh: pytest.MonkeyPatch) -> None:
    working = [backend for backend in BACKENDS if probe_backend(backend) is None]
    assert choose_backend(required=False) == working[0]
    assert os.environ["MUJOCO_GL"] == working[0]
    # No backend is tried again, so breaking them afterwards does not matter.
    fresh.setenv("PYOPENGL_PLATFORM", "glx")
    assert choose_backend() == working[0]


def test_a_backend_that_the_user_set_is_respected(unset: pytest.MonkeyPatch) -> None:
    unset.setenv("MUJOCO_GL", "osmesa")
    assert choose_backend() == "osmesa"


@pytest.mark.usefixtures("broken")
def test_a_broken_backend_returns_its_error() -> None:
    assert all("PYOPENGL_PLATFORM" in (probe_backend(backend) or "") for backend in BACKENDS)


@pytest.mark.usefixtures("broken")
def test_no_backend_names_the_package_to_install() -> None:
    with pytest.raises(SimulatorError, match=r"egl: .*osmesa: .*apt-get install libosmesa6"):
        choose_backend()
    assert not os.environ["MUJOCO_GL"]


@pytest.mark.usefixtures("broken")
def test_a_missing_library_does_not_pass() -> None:
    with pytest.raises(SimulatorError) as raised:
        choose_backend()
    assert not may_pass(raised.value)


def test_a_probe_without_a_frame_in_time_may_pass(unset: pytest.MonkeyPatch) -> None:
    unset.setattr(rendering, "_PROBE_SECONDS", 0.01)
    with pytest.raises(RendererUnavailable, match=r"egl: no frame after 0\.01 s") as raised:
        choose_backend()
    assert may_pass(raised.value)


@pytest.mark.usefixtures("broken")
def test_a_simulation_without_images_needs_no_backend() -> None:
    assert choose_backend(required=False) is None
    code = (
        "from zk0.settings.session import SimulatorSettings; from zk0.simulator.arm import SimulatedArm\n"
        "with SimulatedArm('lift-red', SimulatorSettings(), render=False) as arm:\n"
        "    print(arm.reset(1).state.shape)"
    )
    done = run(code, PYOPENGL_PLATFORM="glx")
    assert done.stdout.strip() == "(6,)", done.stderr


def test_mujoco_imported_too_early_is_an_error() -> None:
    done = run("import mujoco; from zk0.simulator.rendering import choose_backend; choose_backend()")
    assert "SimulatorError: mujoco was imported before" in done.stderr


def test_a_backend_set_by_the_user_that_does_not_render_is_an_error() -> None:
    code = (
        "from zk0.settings.session import SimulatorSettings; from zk0.simulator.arm import SimulatedArm\n"
        "with SimulatedArm('lift-red', SimulatorSettings(), render=True): pass"
    )
    done = run(code, MUJOCO_GL="egl", PYOPENGL_PLATFORM="glx")
    assert "SimulatorError: MUJOCO_GL=egl does not work here" in done.stderr


def test_without_images_then_with_images_in_one_process_that_exits_silently() -> None:
    code = (
        "from zk0.settings.session import SimulatorSettings; from zk0.simulator.arm import SimulatedArm\n"
        "for render in (False, True):\n"
        "    with SimulatedArm('lift-red', SimulatorSettings(), render=render) as arm:\n"
        "        print(sorted(arm.reset(1).images))"
    )
    done = run(code)
    assert done.stdout.split("\n")[:2] == ["[]", "['overhead', 'wrist']"]
    assert done.stderr == ""

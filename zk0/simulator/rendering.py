"""Find an OpenGL backend that renders on this machine.

MuJoCo fixes its backend when it is imported, so each candidate is tried in a process of its own. The choice is stored
in the environment variable MUJOCO_GL, for this process and its children.
"""

import os
import subprocess
import sys

from zk0.errors import RendererUnavailable, SimulatorError

BACKENDS = ("egl", "osmesa")
BACKEND_VARIABLE = "MUJOCO_GL"
INSTALL_HINT = "apt-get install libosmesa6"
"""libosmesa6 alone is a renderer; EGL needs libegl1 and libgl1, and a driver, which these install."""

_LASTING_ERRORS = ("ImportError", "ModuleNotFoundError", "AttributeError", "OSError", "ctypes.ArgumentError")
"""Errors of a probe that begin so: a library is missing or does not fit. Any other, as of a busy GPU, may pass."""
_PROBE_SECONDS = 120
_PROBE = """
import importlib, os
importlib.import_module('mujoco.' + os.environ['MUJOCO_GL'])  # mujoco alone would hide why this fails
import mujoco
model = mujoco.MjModel.from_xml_string(
    '<mujoco><worldbody><light pos="0 0 3"/><geom size="1" rgba="1 1 1 1"/></worldbody></mujoco>')
data = mujoco.MjData(model)
mujoco.mj_forward(model, data)
renderer = mujoco.Renderer(model, 16, 16)
renderer.update_scene(data)
lit = renderer.render().any()
renderer.close()
if not lit:
    raise SystemExit('the frame is black')
"""


def choose_backend(*, required: bool = True) -> str | None:
    """Return the backend: MUJOCO_GL if it is set, else the first that renders a frame. Call it before mujoco's import.

    Args:
        required: False for a simulation without images, which needs no backend: returns None if none renders.

    Raises:
        SimulatorError: a backend is required, and none renders (the message names the package to install) or mujoco
            was imported already.
        RendererUnavailable: none renders, for a reason that may pass.
    """
    if chosen := os.environ.get(BACKEND_VARIABLE):
        return chosen
    errors = {}
    for backend in BACKENDS:
        error = probe_backend(backend)
        if error is None:
            return _choose(backend, required)
        errors[backend] = error
    if not required:
        return None
    tried = "; ".join(f"{backend}: {error}" for backend, error in errors.items())
    lasts = all(error.startswith(_LASTING_ERRORS) for error in errors.values())
    raise (SimulatorError if lasts else RendererUnavailable)(
        f"the simulator cannot render images here ({tried}); on Debian or Ubuntu: {INSTALL_HINT}"
    )


def probe_backend(backend: str) -> str | None:
    """Return None if this backend renders a frame in a new process, else the last line of the error."""
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", _PROBE],
            env={**os.environ, BACKEND_VARIABLE: backend},
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_PROBE_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"no frame after {_PROBE_SECONDS} s"
    if done.returncode == 0:
        return None
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    return lines[-1] if lines else f"exit status {done.returncode}"


def _choose(backend: str, required: bool) -> str:
    if required and "mujoco" in sys.modules:
        raise SimulatorError(
            f"mujoco was imported before its rendering backend was chosen; set {BACKEND_VARIABLE}={backend} "
            "and start again"
        )
    os.environ[BACKEND_VARIABLE] = backend
    return backend

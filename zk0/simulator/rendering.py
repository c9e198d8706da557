"""Which OpenGL backend can render here, found out by rendering.

MuJoCo fixes its backend when it is imported, so every candidate is tried in a process of its own.
The answer is kept in the environment variable MUJOCO_GL: for this process and for its children.
"""

import os
import subprocess
import sys

from zk0.errors import SimulatorError

BACKENDS = ("egl", "osmesa")
VARIABLE = "MUJOCO_GL"
REMEDY = "apt-get install libosmesa6"
"""libosmesa6 alone brings a renderer; EGL needs libegl1 and libgl1 (and a driver, which these bring)."""

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
    """The backend that renders here: MUJOCO_GL where it is set, otherwise the first that renders a frame.

    Call it before mujoco is imported. `required=False` is for a simulation without images, which needs no
    backend: nothing is raised, and None says that there is none.

    Raises:
        SimulatorError: no backend renders (the message names the package to install), or mujoco was
            imported before there was a choice.
    """
    if chosen := os.environ.get(VARIABLE):
        return chosen
    faults = {}
    for backend in BACKENDS:
        fault = probe(backend)
        if fault is None:
            return _remember(backend, required)
        faults[backend] = fault
    if not required:
        return None
    tried = "; ".join(f"{backend}: {fault}" for backend, fault in faults.items())
    raise SimulatorError(f"the simulator cannot render images here ({tried}); on Debian or Ubuntu: {REMEDY}")


def probe(backend: str) -> str | None:
    """None when this backend renders a frame in a fresh process, otherwise the last line of what it said."""
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", _PROBE],
            env={**os.environ, VARIABLE: backend},
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


def _remember(backend: str, required: bool) -> str:
    if required and "mujoco" in sys.modules:
        raise SimulatorError(
            f"mujoco was imported before its rendering backend was chosen; set {VARIABLE}={backend} and start again"
        )
    os.environ[VARIABLE] = backend
    return backend

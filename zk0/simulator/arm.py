"""A simulated SO-101 arm with one task, in LeRobot's units.

It wraps so101-nexus: joint angles in degrees instead of radians, one step per 1/FPS second, fixed cameras.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from ctypes import ArgumentError
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from zk0.errors import RendererUnavailable, SettingsError, SimulatorError
from zk0.settings.dataset_settings import SO101_JOINTS, SimulatorSettings
from zk0.simulator.rendering import INSTALL_HINT, choose_backend
from zk0.simulator.simplified_meshes import simplify_meshes
from zk0.simulator.tasks import CAMERAS, FPS, SimulatedTask, find_task

IMAGE_VERSION = 2
"""Increases whenever the same scene is rendered differently."""
SETTLE_STEPS = 1
"""Control steps after a reset in which the cubes come to rest."""
MIN_CLEARANCE_M = 0.055
"""Smallest distance at the start between the cube and its target: off the disc, and room for the jaws."""
MAX_LAYOUTS = 100
"""Layouts drawn from one seed before the spawn area counts as too small."""


@dataclass(frozen=True, eq=False)
class Observation:
    """The input of a policy at one time step."""

    state: NDArray[np.float32]
    """(6,) in the order of SO101_JOINTS: degrees, the gripper 0 (closed) to 100 (open)."""
    images: Mapping[str, NDArray[np.uint8]]
    """Camera -> (height, width, 3) RGB; empty if this step was not rendered."""
    task: str
    """Task text."""


@dataclass(frozen=True, eq=False)
class StepResult:
    """The observation after one action, and whether the task is done."""

    observation: Observation
    success: bool


class SimulatedArm:
    """A table with an SO-101 arm and one task; a context manager, the simulation runs inside it.

    Args:
        task: name of the task, such as lift-red.
        settings: image size and spawn area.
        render: whether observations can have images.

    Raises:
        SimulatorError: the task does not exist, or no image can be rendered although `render` is set.
        RendererUnavailable: no image can be rendered now.
        SettingsError: the spawn area is impossible.
    """

    def __init__(self, task: str, settings: SimulatorSettings, *, render: bool) -> None:
        self.task: SimulatedTask = find_task(task)
        self.settings = settings
        self.render = render
        self._env: Any = None

    def __enter__(self) -> Self:
        self._env = _open(self.task, self.settings, self.render)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._env is not None:
            self._env.close()
            self._env = None

    @property
    def physics(self) -> tuple[Any, Any]:
        """MuJoCo's model and the live data of the scene; read them, do not write to them."""
        env = self._environment()
        return env.model, env.data

    def reset(self, seed: int, *, render: bool = True) -> Observation:
        """Start the episode of this seed and return its first observation; a seed always gives the same episode.

        so101-nexus places cubes too close when its own tries run out (a cube that starts on its disc would succeed
        without a motion); such a layout is drawn again, from the same seed.

        Args:
            seed: of the episode.
            render: whether the observation has images, if the arm can render.

        Raises:
            SimulatorError: the spawn area has no room for the cube and its target.
        """
        env, drawn = self._environment(), self._seed_with_clearance(seed)
        with self._rendering(render):
            raw, _ = env.reset(seed=drawn)
        return self._observation(raw)

    def step(self, action: NDArray[Any], *, render: bool = True) -> StepResult:
        """Hold a joint target for 1/FPS second.

        Args:
            action: (6,) in the units of `Observation.state`.
            render: whether the observation has images; on a CPU, rendering is nearly all of the cost of a step.

        Raises:
            SimulatorError: the action has another shape or is not finite.
        """
        from so101_nexus import dataset_row_to_sim_qpos

        row = check_actions(np.asarray(action)[None], "an action")[0]
        with self._rendering(render):
            raw, _, _, _, info = self._environment().step(dataset_row_to_sim_qpos(row.astype(np.float64)))
        return StepResult(observation=self._observation(raw), success=bool(info["success"]))

    @contextmanager
    def _rendering(self, enabled: bool) -> Iterator[None]:
        """Switch the cameras on or off: so101-nexus renders the modalities of each camera in every step."""
        cameras = [part for part in self._environment().config.observations if hasattr(part, "modalities")]
        for camera in cameras:
            camera.modalities = ("rgb",) if enabled else ()
        try:
            yield
        finally:
            for camera in cameras:
                camera.modalities = ("rgb",)

    def _environment(self) -> Any:
        if self._env is None:
            raise SimulatorError(f"the simulated arm of {self.task.name} is not open; use it in a with statement")
        return self._env

    def _seed_with_clearance(self, seed: int) -> int:
        """Return the first seed derived from this one whose layout has `MIN_CLEARANCE_M` between cube and target."""
        goal = self.task.goal_body
        if goal is None:
            return seed
        env = self._environment()
        env.config.reset_settle_frames = 0  # as drawn, before physics drives overlapping cubes apart
        try:
            with self._rendering(False):
                for layout in range(MAX_LAYOUTS):
                    drawn = seed if layout == 0 else int(np.random.SeedSequence((seed, layout)).generate_state(1)[0])
                    env.reset(seed=drawn)
                    apart = env.data.body(self.task.cube_body).xpos - env.data.body(goal).xpos
                    if np.linalg.norm(apart[:2]) >= MIN_CLEARANCE_M:
                        return drawn
        finally:
            env.config.reset_settle_frames = SETTLE_STEPS
        raise SimulatorError(
            f"{self.task.name}, seed {seed}: none of {MAX_LAYOUTS} layouts has {MIN_CLEARANCE_M} m between the cube "
            "and its target; widen simulator.spawn_radius_m or simulator.spawn_half_angle_degrees"
        )

    def _observation(self, raw: Any) -> Observation:
        from so101_nexus import sim_qpos_to_dataset_row

        radians = raw["state"] if self.render else raw
        state = sim_qpos_to_dataset_row(radians.astype(np.float64)).astype(np.float32)
        images = raw if self.render else {}
        by_camera = {camera: images[f"{camera}_camera"] for camera in CAMERAS if f"{camera}_camera" in images}
        return Observation(state=state, images=by_camera, task=self.task.text)


def check_actions(actions: NDArray[Any], where: str) -> NDArray[np.float32]:
    """Return actions as float32 (n, 6), n at least 1.

    Args:
        actions: joint targets.
        where: what they are, for the error.

    Raises:
        SimulatorError: another shape, or a value that is not finite.
    """
    joints = len(SO101_JOINTS)
    if actions.ndim != 2 or actions.shape[1] != joints or not len(actions):
        raise SimulatorError(f"{where}: found shape {actions.shape}, expected (n, {joints}) with n at least 1")
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite and is rejected
        rows = actions.astype(np.float32)
    bad = np.argwhere(~np.isfinite(rows))
    if len(bad):
        row, joint = bad[0]
        raise SimulatorError(
            f"{where}: row {row}, {SO101_JOINTS[joint]}: found {actions[row, joint]}, expected a finite number"
        )
    return rows


def _open(task: SimulatedTask, settings: SimulatorSettings, render: bool) -> Any:
    backend = choose_backend(required=render)
    # mujoco hides an ImportError of its backend until it makes the first renderer.
    errors: tuple[type[Exception], ...] = (ImportError, AttributeError, ArgumentError) if backend else ()
    passing: tuple[type[Exception], ...] = (RuntimeError,) if backend else ()
    try:
        import gymnasium
        import mujoco
        import so101_nexus.mujoco  # noqa: F401  registers the environments

        passing = (*passing, mujoco.FatalError)
        config = _config(task, settings, render)
        env = gymnasium.make(task.env_id, config=config, disable_env_checker=True).unwrapped
        if render:
            simplify_meshes(env)
        return env
    except ValueError as e:
        raise SettingsError(f"simulator: {e}") from e
    except errors as e:
        raise SimulatorError(f"MUJOCO_GL={backend} does not work here ({e}); unset it, or: {INSTALL_HINT}") from e
    except passing as e:  # OpenGL itself, as of a busy GPU
        raise RendererUnavailable(f"MUJOCO_GL={backend} does not work now ({e}); unset it, or: {INSTALL_HINT}") from e


def _config(task: SimulatedTask, settings: SimulatorSettings, render: bool) -> Any:
    import so101_nexus as nexus
    from so101_nexus.config import PhysicsConfig

    nearest, farthest = settings.spawn_radius_m
    shared: dict[str, Any] = {
        "spawn_min_radius": nearest,
        "spawn_max_radius": farthest,
        "spawn_angle_half_range_deg": settings.spawn_half_angle_degrees,
        "reset_settle_frames": SETTLE_STEPS,
        "terminate_on_success": False,
        "observations": [nexus.JointPositions(), *(_cameras(settings.image_size) if render else ())],
        # Solver settings of so101-nexus' own scenes; only the control period differs (0.02 s there).
        "physics": PhysicsConfig(
            control_period_s=1 / FPS, integrator="implicitfast", tolerance=1e-8, noslip_iterations=3
        ),
    }
    if render:
        # Two small images are cheap on a CPU only without multisampling and shadows.
        quality = nexus.RenderingQuality("reproducible", msaa_samples=0, shadows=False, shadow_map_size=1)
        shared |= {"obs_mode": "visual", "render": nexus.RenderConfig(quality=quality)}
    if task.motion == "lift":
        return nexus.PickConfig(objects=nexus.CubeObject(color=task.cube), **shared)
    if task.motion == "place":
        return nexus.PickAndPlaceV2Config(cube_colors=task.cube, target_colors=task.onto, **shared)
    # so101-nexus leaves 0.04 m between the cubes, for which a narrow spawn area has no room.
    return nexus.StackCubeConfig(cube_a_colors=task.cube, cube_b_colors=task.onto, min_cube_separation=0.02, **shared)


def _cameras(size: int) -> tuple[Any, Any]:
    from so101_nexus import OverheadCamera, WristCamera

    # The wrist camera is fixed to the gripper: the middle of so101-nexus' ranges instead of another pose per episode.
    wrist = WristCamera(
        width=size,
        height=size,
        fov_deg_range=(75.0, 75.0),
        pitch_deg_range=(-17.2, -17.2),
        pos_x_noise=0.0,
        pos_y_noise=0.0,
        pos_z_noise=0.0,
    )
    return OverheadCamera(width=size, height=size), wrist

"""A scripted expert for all tasks: waypoints of the gripper, and inverse kinematics for the joint angles.

It records the demonstrations that simulated clients train on.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zk0.simulator.arm import SimulatedArm
from zk0.simulator.tasks import SimulatedTask

Vector = NDArray[np.float64]

OPEN_RADIANS = 0.5
"""Wide enough for a cube of 25 mm, and narrow enough to pass beside the other cube."""
CLOSED_RADIANS = -0.15
CUBE_SIDE_M = 0.025
PINCH_OFFSET_M = np.array([-0.003, 0.0, 0.0])
"""From the tool site to the point between the closed jaws, in the site's frame."""
HELD_OFFSET_M = np.array([0.0096, 0.0, 0.003])
"""From the tool site to the center of a held cube: the moving jaw has pushed it against the fixed one."""
READY_RADIANS = np.array([0.0, -0.5, 0.9, 1.2, 0.0])
"""The arm bent over the table: the initial guess of the inverse kinematics."""
SHOULDER_X_M = 0.03
"""Distance of the pan axis from the origin."""

_ITERATIONS = 150
_DAMPING = 1e-4
_ROTATION_WEIGHT_M = 0.08
"""A rotation error of one radian weighs as much as this position error; five joints cannot satisfy both."""
_LIMIT_MARGIN_RADIANS = 0.01
_MAX_STEP_RADIANS = 0.2
_RAMP = 0.8
"""Share of a waypoint's steps in which the target moves; in the others the arm catches up."""


@dataclass(frozen=True, eq=False)
class Pose:
    """Position of a cube: its center in meters, and its rotation about the vertical axis in radians."""

    center: Vector
    yaw: float


@dataclass(frozen=True, eq=False)
class Waypoint:
    """Joint targets (6,) in radians, and the number of steps in which to reach them."""

    joints: Vector
    steps: int


class InverseKinematics:
    """Finds joint angles that bring the point between the jaws to a position, with the jaws pointing down.

    Damped least squares (Nakamura and Hanafusa 1986; Wampler 1986): dq = J^T (J J^T + lambda I)^-1 e. It computes on
    its own copy of the data, so the live scene does not move.
    """

    def __init__(self, model: Any) -> None:
        import mujoco
        from so101_nexus import SO101_JOINT_NAMES, SO101_TCP_SITE_NAME

        self._mujoco = mujoco
        self._model = model
        self._data = mujoco.MjData(model)
        self._site = model.site(SO101_TCP_SITE_NAME).id
        joints = [model.joint(name) for name in SO101_JOINT_NAMES]
        self._positions = [int(joint.qposadr[0]) for joint in joints]
        self._velocities = [int(joint.dofadr[0]) for joint in joints[:-1]]
        limits = np.array([joint.range for joint in joints[:-1]])
        self._low, self._high = limits[:, 0] + _LIMIT_MARGIN_RADIANS, limits[:, 1] - _LIMIT_MARGIN_RADIANS

    def solve(
        self,
        position: Vector,
        yaw: float,
        gripper: float,
        start: Vector | None = None,
        offset: Vector = PINCH_OFFSET_M,
    ) -> Vector:
        """Return joint angles (6,) in radians.

        Args:
            position: of a point between the jaws, in meters.
            yaw: of the gripper; quarter turns do not matter, since a cube is symmetric.
            gripper: angle of the gripper joint, returned as it is.
            start: joint angles to start from.
            offset: of the point, in the frame of the tool site.
        """
        joints = self._facing(position) if start is None else start[:-1].copy()
        weights = np.array([1.0] * 3 + [_ROTATION_WEIGHT_M] * 3)
        for _ in range(_ITERATIONS):
            self._data.qpos[self._positions] = np.append(joints, gripper)
            error, jacobian = self._errors(position, yaw, offset)
            error, jacobian = error * weights, jacobian * weights[:, None]
            step = jacobian.T @ np.linalg.solve(jacobian @ jacobian.T + _DAMPING * np.eye(6), error)
            joints = np.clip(joints + np.clip(step, -_MAX_STEP_RADIANS, _MAX_STEP_RADIANS), self._low, self._high)
        return np.append(joints, gripper)

    def _facing(self, position: Vector) -> Vector:
        """Return the initial guess: the bent arm, turned towards the position."""
        joints = READY_RADIANS.copy()
        joints[0] = np.arctan2(position[1], position[0] - SHOULDER_X_M)
        return np.clip(joints, self._low, self._high)

    def _errors(self, position: Vector, yaw: float, offset: Vector) -> tuple[Vector, Vector]:
        """Return the pose error (6,) in meters and radians, and its Jacobian (6, 5)."""
        mujoco = self._mujoco
        mujoco.mj_kinematics(self._model, self._data)
        mujoco.mj_comPos(self._model, self._data)  # mj_jac reads the centers of mass
        rotation = self._data.site_xmat[self._site].reshape(3, 3)
        point = self._data.site_xpos[self._site] + rotation @ offset
        linear, angular = np.zeros((3, self._model.nv)), np.zeros((3, self._model.nv))
        body = int(self._model.site_bodyid[self._site])
        mujoco.mj_jac(self._model, self._data, linear, angular, point, body)
        tilt = np.cross(rotation[:, 2], (0.0, 0.0, -1.0))
        turn = yaw - np.arctan2(rotation[1, 0], rotation[0, 0])
        tilt[2] += (turn + np.pi / 4) % (np.pi / 2) - np.pi / 4
        jacobian = np.vstack([linear, angular])[:, self._velocities]
        return np.concatenate([position - point, tilt]), jacobian


def plan_trajectory(arm: SimulatedArm) -> NDArray[np.float32]:
    """Return all actions (n, 6) of one attempt, in LeRobot's units, from the current scene; the scene does not move."""
    from so101_nexus import sim_qpos_to_dataset_row

    model, data = arm.physics
    kinematics = InverseKinematics(model)
    cube = _pose(data, arm.task.cube_body)
    waypoints = _grasp(kinematics, cube)
    if arm.task.goal_body is not None:
        goal = _pose(data, arm.task.goal_body)
        offset = HELD_OFFSET_M if arm.task.motion == "stack" else PINCH_OFFSET_M  # a disc is wide enough
        waypoints += _release(kinematics, _resting_place(arm.task, cube, goal), offset)
    now = np.array([float(data.joint(name).qpos[0]) for name in _joint_names()])
    return np.asarray(sim_qpos_to_dataset_row(_interpolate(now, waypoints)), dtype=np.float32)


def _resting_place(task: SimulatedTask, cube: Pose, goal: Pose) -> Pose:
    """Return the pose in which to release the cube: a few millimeters above where it will rest."""
    if task.motion == "place":
        return Pose(np.array([goal.center[0], goal.center[1], cube.center[2] + 0.006]), cube.yaw)
    return Pose(_raised(goal.center, CUBE_SIDE_M + 0.004), goal.yaw)


def _grasp(kinematics: InverseKinematics, cube: Pose) -> list[Waypoint]:
    above = kinematics.solve(_raised(cube.center, 0.07), cube.yaw, OPEN_RADIANS)
    around = kinematics.solve(_raised(cube.center, 0.002), cube.yaw, OPEN_RADIANS, above)
    lifted = kinematics.solve(_raised(cube.center, 0.10), cube.yaw, CLOSED_RADIANS, above)
    return [
        Waypoint(above, 8),
        Waypoint(around, 6),
        Waypoint(_with_gripper(around, CLOSED_RADIANS), 5),
        Waypoint(lifted, 7),
    ]


def _release(kinematics: InverseKinematics, onto: Pose, offset: Vector) -> list[Waypoint]:
    above = kinematics.solve(_raised(onto.center, 0.07), onto.yaw, CLOSED_RADIANS, offset=offset)
    down = kinematics.solve(onto.center, onto.yaw, CLOSED_RADIANS, above, offset)
    return [
        Waypoint(above, 10),
        Waypoint(down, 6),
        Waypoint(_with_gripper(down, OPEN_RADIANS), 4),
        Waypoint(_with_gripper(above, OPEN_RADIANS), 6),
        Waypoint(_with_gripper(above, OPEN_RADIANS), 6),  # the cube comes to rest
    ]


def _interpolate(start: Vector, waypoints: list[Waypoint]) -> Vector:
    """Return straight lines in joint space through the waypoints, (n, 6) in radians."""
    rows = []
    for waypoint in waypoints:
        for index in range(waypoint.steps):
            part = min(1.0, (index + 1) / (waypoint.steps * _RAMP))
            rows.append(start + (waypoint.joints - start) * part)
        start = waypoint.joints
    return np.array(rows)


def _raised(position: Vector, meters: float) -> Vector:
    return np.array([position[0], position[1], position[2] + meters])


def _with_gripper(joints: Vector, gripper: float) -> Vector:
    return np.append(joints[:-1], gripper)


def _pose(data: Any, body: str) -> Pose:
    w, x, y, z = data.body(body).xquat
    yaw = np.arctan2(2 * (w * z + x * y), 1 - 2 * (y * y + z * z))
    return Pose(center=data.body(body).xpos.copy(), yaw=float(yaw))


def _joint_names() -> tuple[str, ...]:
    from so101_nexus import SO101_JOINT_NAMES

    return tuple(SO101_JOINT_NAMES)

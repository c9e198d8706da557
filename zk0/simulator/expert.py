"""A scripted expert for all tasks: it decides each action from the present scene alone.

It records the demonstrations that simulated clients train on. Since it keeps no plan, it has an answer wherever the arm
is and whatever happened before: it grasps again after a miss, and approaches again when the cube was pushed away. So it
can also say, in every state that a policy reaches, what the policy should have done (DAgger, Ross et al. 2011, arXiv
1011.0686).
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from zk0.simulator.arm import SimulatedArm

Vector = NDArray[np.float64]

OPEN_RADIANS = 0.5
"""Wide enough for a cube of 25 mm, and narrow enough to pass beside the other cube."""
CLOSED_RADIANS = -0.15
CUBE_SIDE_M = 0.025
GRASP_OFFSET_M = (0.001, 0.0, 0.0)
"""Where the cube's center is to be before the jaws close, in the frame of the tool site."""
HELD_OFFSET_M = np.array([0.0096, 0.0, 0.003])
"""Where the center of a held cube is: the moving jaw has pushed the cube against the fixed one."""
HELD_WITHIN_M = np.array([0.006, 0.008, 0.014])
READY_RADIANS = np.array([0.0, -0.5, 0.9, 1.2, 0.0])
"""The arm bent over the table: the initial guess of the inverse kinematics."""
SHOULDER_X_M = 0.03
"""Distance of the pan axis from the origin."""
FAST_RADIANS, SLOW_RADIANS = np.radians(12.0), np.radians(5.0)
"""Largest motion of a joint in one step: on the way, and close to a cube."""
GRIPPER_RADIANS = 0.3
"""Largest motion of the gripper in one step."""
LONGEST_ATTEMPT = 60
"""Steps of an undisturbed attempt after which the expert has failed; most take 17 to 37."""

_REST_Z_M = CUBE_SIDE_M / 2
_APPROACH_HEIGHTS_M = (0.06, 0.045, 0.03)
"""Above the cube; the highest one that the arm reaches."""
_LIFTED_Z_M = 0.125
_MISS_M = 0.006
_ITERATIONS, _ITERATIONS_NEARBY = 120, 25
_DAMPING = 1e-4
_ERROR_WEIGHTS = np.array([1.0, 1.0, 1.0, 0.01, 0.01, 0.05])
"""Of position, tilt, and rotation about the vertical axis (m/rad): five joints cannot satisfy all six."""
_CONVERGED_RADIANS = 2e-4
_LIMIT_MARGIN_RADIANS = 0.01
_MAX_STEP_RADIANS = 0.2


class Motion(NamedTuple):
    """What the arm is to do next."""

    joints: Vector
    """(5,) target angles in radians."""
    gripper: float
    step: float
    """Largest motion of a joint in one step, in radians."""


@dataclass(frozen=True, eq=False)
class Pose:
    """Position of a cube: its center in meters, and the heading of a side in radians."""

    center: Vector
    yaw: float


@dataclass(frozen=True, eq=False)
class Tool:
    """Joint angles (5,), gripper angle, and position and rotation (3, 3) of the tool site."""

    joints: Vector
    gripper: float
    position: Vector
    rotation: Vector

    @property
    def yaw(self) -> float:
        return float(np.arctan2(self.rotation[1, 0], self.rotation[0, 0]))

    def relative(self, point: Vector) -> Vector:
        """A point (3,) in the frame of the tool site."""
        return np.asarray(self.rotation.T @ (point - self.position))

    def is_still(self, gripper: float) -> Motion:
        """Only the gripper moves."""
        return Motion(self.joints, gripper, SLOW_RADIANS)


class InverseKinematics:
    """Finds joint angles that bring a point of the gripper to a position, with the jaws pointing down if they can.

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
        joints = [model.joint(name) for name in SO101_JOINT_NAMES[:-1]]
        self._positions = [int(joint.qposadr[0]) for joint in joints]
        self._velocities = [int(joint.dofadr[0]) for joint in joints]
        limits = np.array([joint.range for joint in joints])
        self._low, self._high = limits[:, 0] + _LIMIT_MARGIN_RADIANS, limits[:, 1] - _LIMIT_MARGIN_RADIANS

    def solve(self, position: Vector, yaw: float, offset: Vector, start: Vector | None = None) -> tuple[Vector, float]:
        """Return joint angles (5,) in radians, and how far the point misses its position horizontally, in meters.

        Args:
            position: of the point, in meters.
            yaw: of the gripper; quarter turns do not matter, since a cube is symmetric.
            offset: of the point, in the frame of the tool site.
            start: joint angles nearby; few iterations are made from there.
        """
        joints = self._facing(position) if start is None else start.copy()
        for _ in range(_ITERATIONS if start is None else _ITERATIONS_NEARBY):
            error, jacobian = self._errors(joints, position, yaw, offset)
            error, jacobian = error * _ERROR_WEIGHTS, jacobian * _ERROR_WEIGHTS[:, None]
            step = jacobian.T @ np.linalg.solve(jacobian @ jacobian.T + _DAMPING * np.eye(6), error)
            joints = np.clip(joints + np.clip(step, -_MAX_STEP_RADIANS, _MAX_STEP_RADIANS), self._low, self._high)
            if np.abs(step).max() < _CONVERGED_RADIANS:
                break
        error, _ = self._errors(joints, position, yaw, offset)
        return joints, float(np.hypot(*error[:2]))

    def _facing(self, position: Vector) -> Vector:
        """Return the initial guess: the bent arm, turned towards the position."""
        joints = READY_RADIANS.copy()
        joints[0] = np.arctan2(position[1], position[0] - SHOULDER_X_M)
        return np.clip(joints, self._low, self._high)

    def _errors(self, joints: Vector, position: Vector, yaw: float, offset: Vector) -> tuple[Vector, Vector]:
        """Return the pose error (6,) in meters and radians, and its Jacobian (6, 5)."""
        mujoco = self._mujoco
        self._data.qpos[self._positions] = joints
        mujoco.mj_kinematics(self._model, self._data)
        mujoco.mj_comPos(self._model, self._data)  # mj_jac reads the centers of mass
        rotation = self._data.site_xmat[self._site].reshape(3, 3)
        point = self._data.site_xpos[self._site] + rotation @ offset
        linear, angular = np.zeros((3, self._model.nv)), np.zeros((3, self._model.nv))
        mujoco.mj_jac(self._model, self._data, linear, angular, point, int(self._model.site_bodyid[self._site]))
        turn = _quarter_turn(yaw - np.arctan2(rotation[1, 0], rotation[0, 0]))
        tilt = (-rotation[1, 2], rotation[0, 2])  # the site's z axis is to point down
        jacobian = np.vstack([linear, angular])[:, self._velocities]
        return np.array([*(position - point), *tilt, turn]), jacobian


class ScriptedExpert:
    """Says what to do next in the present scene of an arm; it keeps nothing between two calls.

    Args:
        arm: an open arm.
    """

    def __init__(self, arm: SimulatedArm) -> None:
        from so101_nexus import SO101_JOINT_NAMES, SO101_TCP_SITE_NAME

        self._arm, self._task = arm, arm.task
        self._model, self._data = arm.physics
        self._site = self._model.site(SO101_TCP_SITE_NAME).id
        self._joints = [int(self._model.joint(name).qposadr[0]) for name in SO101_JOINT_NAMES]
        self._kinematics = InverseKinematics(self._model)
        self._solved = lru_cache(maxsize=512)(self._solve_rounded)

    def action(self) -> NDArray[np.float32]:
        """Return the next action (6,) in LeRobot's units."""
        from so101_nexus import sim_qpos_to_dataset_row

        now, motion = self._data.qpos[self._joints], self.motion()
        way = motion.joints - now[:5]
        way *= min(1.0, motion.step / max(np.abs(way).max(), 1e-9))
        gripper = now[5] + np.clip(motion.gripper - now[5], -GRIPPER_RADIANS, GRIPPER_RADIANS)
        return np.asarray(sim_qpos_to_dataset_row(np.append(now[:5] + way, gripper)), dtype=np.float32)

    def chunk(self, length: int) -> NDArray[np.float32]:
        """Return the next actions (length, 6), by simulating them; the scene does not change."""
        actions = []
        with self._arm.undone():
            for _ in range(length):
                actions.append(self.action())
                self._arm.advance(actions[-1])
        return np.array(actions)

    def motion(self) -> Motion:
        """Return where the arm is to go from here."""
        import mujoco

        mujoco.mj_kinematics(self._model, self._data)  # after a step, positions may be those before its last part
        tool, cube = self.tool(), self.pose(self._task.cube_body)
        if self._task.goal_body is None:
            return self._lift(tool, cube) if _is_held(tool, cube) else self._grasp(tool, cube)
        goal = self._resting_place(tool, self.pose(self._task.goal_body))
        if _is_held(tool, cube):
            return self._carry(tool, cube, goal)
        return self._leave(tool, cube) if self._is_delivered(cube, goal) else self._grasp(tool, cube)

    def tool(self) -> Tool:
        now, site = self._data.qpos[self._joints], self._data.site(self._site)
        return Tool(now[:5].copy(), float(now[5]), site.xpos.copy(), site.xmat.reshape(3, 3).copy())

    def pose(self, name: str) -> Pose:
        """The pose of a cube or disc; a cube may lie on any of its faces."""
        body = self._data.body(name)
        axes = body.xmat.reshape(3, 3)
        side = (int(np.argmax(np.abs(axes[2]))) + 1) % 3
        return Pose(body.xpos.copy(), float(np.arctan2(axes[1, side], axes[0, side])))

    def _resting_place(self, tool: Tool, goal: Pose) -> Pose:
        """Where the cube will rest; on a disc it may be turned as it is held."""
        if self._task.motion == "place":
            return Pose(np.array([*goal.center[:2], _REST_Z_M]), tool.yaw)
        return Pose(goal.center + np.array([0, 0, CUBE_SIDE_M]), goal.yaw)

    def _is_delivered(self, cube: Pose, goal: Pose) -> bool:
        off = cube.center - goal.center
        return bool(np.hypot(*off[:2]) < (0.02 if self._task.motion == "place" else 0.014) and -0.006 < off[2] < 0.008)

    def _lift(self, tool: Tool, cube: Pose) -> Motion:
        to = np.array([*cube.center[:2], _LIFTED_Z_M])
        return Motion(self._nearby(tool, to, tool.relative(cube.center)), CLOSED_RADIANS, FAST_RADIANS)

    def _carry(self, tool: Tool, cube: Pose, goal: Pose) -> Motion:
        """Rise, go above the goal, go down, open."""
        place, offset, off = self._task.motion == "place", tool.relative(cube.center), cube.center - goal.center
        apart = float(np.hypot(*off[:2]))
        turned = abs(_quarter_turn(tool.yaw - goal.yaw)) < 0.2
        if (turned and apart < (0.012 if place else 0.005)) or (off[2] < 0.008 and apart < 0.009):
            if off[2] < 0.0055:
                return tool.is_still(OPEN_RADIANS)
            return Motion(self._above(goal, 0.003, offset), CLOSED_RADIANS, SLOW_RADIANS)
        height = 0.055 - _REST_Z_M if place else 0.032
        if off[2] < height - 0.018 and apart > 0.02:
            to = np.array([*cube.center[:2], goal.center[2] + height])
            return Motion(self._nearby(tool, to, offset), CLOSED_RADIANS, FAST_RADIANS)
        return Motion(self._above(goal, height, offset), CLOSED_RADIANS, FAST_RADIANS)

    def _leave(self, tool: Tool, cube: Pose) -> Motion:
        """Open the jaws around the delivered cube, then go up."""
        if tool.gripper < 0.42 and np.linalg.norm(tool.relative(cube.center) - HELD_OFFSET_M) < 0.035:
            return tool.is_still(OPEN_RADIANS)
        return self._up(tool, _LIFTED_Z_M)

    def _grasp(self, tool: Tool, cube: Pose) -> Motion:
        """Go above the cube, go down, close."""
        x, y, _ = tool.relative(cube.center) - GRASP_OFFSET_M
        height, turn = tool.position[2] - cube.center[2], abs(_quarter_turn(cube.yaw - tool.yaw))
        is_open = tool.gripper > 0.4
        between = -0.013 < x < 0.0115 and abs(y) < (0.0045 if is_open else 0.008) and abs(height) < 0.009
        if between:
            closes = turn < 0.4 and (is_open or tool.gripper > 0.07)
            return tool.is_still(CLOSED_RADIANS if closes else OPEN_RADIANS)
        apart, high = float(np.hypot(x, y)), max(height, 0.0)
        if apart < 0.006 + 0.11 * high and turn < 0.12 + 2 * high and tool.gripper > 0.38:
            return Motion(self._above(cube, 0.002, np.array(GRASP_OFFSET_M)), OPEN_RADIANS, SLOW_RADIANS)
        if height < 0.04 and apart < 0.045:  # not sideways into the cube
            return self._up(tool, cube.center[2] + 0.06)
        return Motion(self._highest_above(cube), OPEN_RADIANS, FAST_RADIANS)

    def _up(self, tool: Tool, z: float) -> Motion:
        return Motion(self._nearby(tool, np.array([*tool.position[:2], z]), np.zeros(3)), OPEN_RADIANS, FAST_RADIANS)

    def _nearby(self, tool: Tool, to: Vector, offset: Vector) -> Vector:
        """Joints that bring a point of the gripper there, turned as it is."""
        return self._kinematics.solve(to, tool.yaw, offset, tool.joints)[0]

    def _above(self, pose: Pose, height: float, offset: Vector) -> Vector:
        """Joints that bring a point of the gripper above a pose, turned like it."""
        return self._solve_above(pose, height, offset)[0]

    def _highest_above(self, cube: Pose) -> Vector:
        for height in _APPROACH_HEIGHTS_M:
            joints, miss = self._solve_above(cube, height, np.array(GRASP_OFFSET_M))
            if miss < _MISS_M:
                break
        return joints

    def _solve_above(self, pose: Pose, height: float, offset: Vector) -> tuple[Vector, float]:
        to = pose.center + np.array([0, 0, height])
        key = (*np.round(to, 3).tolist(), round(_quarter_turn(pose.yaw), 2), *np.round(offset, 3).tolist())
        return self._solved(key)

    def _solve_rounded(self, key: tuple[float, ...]) -> tuple[Vector, float]:
        """The solution for values in whole millimeters, so that it can be kept without a bearing on later answers."""
        return self._kinematics.solve(np.array(key[:3]), key[3], np.array(key[4:]))


def _is_held(tool: Tool, cube: Pose) -> bool:
    off = np.abs(tool.relative(cube.center) - HELD_OFFSET_M)
    return bool(np.all(off < HELD_WITHIN_M) and tool.gripper < 0.14)


def _quarter_turn(angle: float) -> float:
    """The angle of the same cube side within an eighth of a turn."""
    return float((angle + np.pi / 4) % (np.pi / 2) - np.pi / 4)

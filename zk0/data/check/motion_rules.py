"""Rules about how the arm moves, episode by episode: what no counting finds. All are warnings.

Their limits are such that recordings without a known fault do not break them; docs/data-checks.md counts how many do.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from zk0.data.check.contents import Contents
from zk0.data.check.detected_units import detect_grippers, detect_so_arm, detect_units
from zk0.data.check.motion_measures import (
    Motion,
    delta_scale,
    find_glitches,
    find_zero_rows,
    follow_correlations,
    idle_frames,
    moved_share,
)
from zk0.data.check.path_copies import near_copies
from zk0.data.check.rule import RuleGroup, Violation
from zk0.data.frame_table import SUCCESS
from zk0.name_lists import join_episodes, join_names

MOTION_RULES = RuleGroup[[Contents], Violation]("Motion", __name__)

STUCK_STATE, STUCK_ACTION = 0.01, 0.15
"""Shares of their ranges that the state of a joint stays within although its action moves further."""
MIN_IDLE_SHARE, MIN_IDLE_SECONDS = 0.5, 1.0
"""Share and duration of an episode from which standing still at its ends is reported."""
MAX_FOLLOW_SECONDS = 0.5
"""Longest usual time after which a robot follows a command."""
MIN_FOLLOW_CORRELATION, MIN_FOLLOW_GAIN = 0.6, 0.05
"""Correlation at the found lag, and by how much it exceeds that of usual lags, from which a lag is certain."""
MIN_CLIPPED_SHARE, MIN_SATURATED_SHARE, BEYOND = 0.1, 0.25, 0.05
"""Shares of the frames with an action at its limit: with the state beyond it (by 5 % of its range), and in any case."""
NORMALIZED_STOP = 100.0
"""Where a joint in LeRobot's -100..100 stands at its mechanical stop; that is no limit of a recording."""
GRIPPER_MARGIN = 10.0
"""How far a gripper may leave 0..100, because calibrations are inexact."""
NEAR_COPY = 0.05
"""Largest distance of two paths, as a share of each joint's range, at which one episode is a copy of the other."""
MAX_SINGLE_TAKE_SECONDS = 120.0
"""Duration of a dataset's only episode from which it is taken for a whole recording."""


@MOTION_RULES.rule("glitch", severity="warning")
def glitch(contents: Contents) -> Iterator[Violation]:
    """No state and no action jumps away and back within one frame, as after an error on the servo bus."""
    if (motion := contents.motion) is None:
        return
    for key, spread, step, name in (
        (contents.state_key, motion.state_range, motion.state_step, "state"),
        (contents.action_key, motion.action_range, motion.action_step, "action"),
    ):
        found = {e: find_glitches(getattr(f, name), spread, step) for e, f in motion.episodes.items()}
        if broken := {e: places for e, places in found.items() if places}:
            episode, places = next(iter(broken.items()))
            frame, joint = places[0]
            value = getattr(motion.episodes[episode], name)[frame, joint]
            yield Violation(
                where=f"{key} of {join_episodes(list(broken))}",
                found=f"{_joint(contents, joint)} at {value:.4g} for one frame (frame {frame} of episode {episode})",
                expected="values that a joint can reach from frame to frame",
                episodes=tuple(broken),
            )


@MOTION_RULES.rule("zero-rows", severity="warning")
def zero_rows(contents: Contents) -> Iterator[Violation]:
    """No row is all zeros between rows that are not, as after a lost reading."""
    if (motion := contents.motion) is None:
        return
    for key, spread, name in (
        (contents.state_key, motion.state_range, "state"),
        (contents.action_key, motion.action_range, "action"),
    ):
        found = {e: find_zero_rows(getattr(f, name), spread) for e, f in motion.episodes.items()}
        if broken := {e: frames for e, frames in found.items() if frames}:
            episode, frames = next(iter(broken.items()))
            yield Violation(
                where=f"{key} of {join_episodes(list(broken))}",
                found=f"{sum(map(len, broken.values()))} rows of zeros (first: frame {frames[0]} of episode {episode})",
                expected="the values that were measured",
                episodes=tuple(broken),
            )


@MOTION_RULES.rule("joint-stands-still", severity="warning")
def joint_stands_still(contents: Contents) -> Iterator[Violation]:
    """No joint stands still in an episode in which its action moves, as with a servo that is off or a blocked joint."""
    motion = contents.motion
    if motion is None or not motion.same_space:
        return
    stuck: dict[int, list[int]] = {}
    for episode, frames in motion.episodes.items():
        still = moved_share(frames.state, motion.state_range) < STUCK_STATE
        driven = moved_share(frames.action, motion.action_range) > STUCK_ACTION
        if joints := np.flatnonzero(still & driven & (motion.state_range > 0)).tolist():
            stuck[episode] = joints
    if stuck:
        episode, joints = next(iter(stuck.items()))
        names = join_names([_joint(contents, d) for d in joints])
        yield Violation(
            where=f"{contents.state_key} of {join_episodes(list(stuck))}",
            found=f"{names} at one position while the action moves (episode {episode})",
            expected="a joint that follows its action",
            episodes=tuple(stuck),
        )


@MOTION_RULES.rule("idle-episode", severity="warning")
def idle_episode(contents: Contents) -> Iterator[Violation]:
    """The arm moves in every episode."""
    idle = [e for e, (frames, still) in _idle(contents).items() if still >= frames]
    if idle:
        yield Violation(join_episodes(idle), "an arm that never moves", "a demonstration", episodes=tuple(idle))


@MOTION_RULES.rule("idle-ends", severity="warning")
def idle_ends(contents: Contents) -> Iterator[Violation]:
    """The arm stands still for less than half of an episode at its beginning and its end."""
    idle = {
        e: still / contents.fps
        for e, (frames, still) in _idle(contents).items()
        if MIN_IDLE_SHARE * frames <= still < frames and still >= MIN_IDLE_SECONDS * contents.fps
    }
    if idle:
        episode, seconds = next(iter(idle.items()))
        yield Violation(
            where=join_episodes(list(idle)),
            found=f"{seconds:.3g} s without motion at the ends of episode {episode}",
            expected="less than half of the episode",
            episodes=tuple(idle),
        )


@MOTION_RULES.rule("action-lag", severity="warning")
def action_lag(contents: Contents) -> Iterator[Violation]:
    """The state follows the action within half a second and does not lead it; else rows were shifted when stored."""
    lags = _lags(contents.motion, contents.fps) if contents.info else {}
    if not lags:
        return
    usual = float(np.median(list(lags.values())))
    most = MAX_FOLLOW_SECONDS * contents.fps
    early = [e for e, lag in lags.items() if lag <= -2]
    late = [e for e, lag in lags.items() if lag > most or lag > usual + max(3.0, 0.2 * contents.fps)]
    for episodes, what in ((early, "before"), (late, "after")):
        if episodes:
            frames = abs(lags[episodes[0]])
            yield Violation(
                where=join_episodes(episodes),
                found=f"a state that moves {frames} frames ({frames / contents.fps:.2g} s) {what} its action",
                expected=f"a state that follows its action within {MAX_FOLLOW_SECONDS:g} s",
                episodes=tuple(episodes),
            )


@MOTION_RULES.rule("delta-actions", severity="warning")
def delta_actions(contents: Contents) -> Iterator[Violation]:
    """Actions are positions like the states, not differences; a policy that mixes both is of no use."""
    motion = contents.motion
    if motion is not None and (deltas := motion.delta_episodes):
        in_all = len(deltas) == len(motion.episodes)
        scale = delta_scale(motion, deltas)
        yield Violation(
            where=f"data {contents.action_key}" + ("" if in_all else f" of {join_episodes(deltas)}"),
            found=f"actions that follow the change of the state (range {scale:.2g} of the states')",
            expected="target positions in the space of the states",
            episodes=() if in_all else deltas,
        )


@MOTION_RULES.rule("clipped-actions", severity="warning")
def clipped_actions(contents: Contents) -> Iterator[Violation]:
    """Actions are not cut off at a limit that the states exceed, nor at the limits of most joints."""
    motion = contents.motion
    if motion is None or not motion.same_space:
        return
    state = np.concatenate([f.state for f in motion.episodes.values()])
    action = np.concatenate([f.action for f in motion.episodes.values()])
    high, low, margin = action.max(axis=0), action.min(axis=0), BEYOND * motion.state_range
    at_limit = ((action == high) | (action == low)) & (np.abs(action) != NORMALIZED_STOP)
    beyond = ((action == high) & (state > high + margin)) | ((action == low) & (state < low - margin))
    moving = (motion.action_range > 0) & ~detect_grippers(contents)
    past = np.where(beyond, state, np.nan)
    moves = np.asarray([np.ptp(c[np.isfinite(c)]) if np.isfinite(c).any() else 0.0 for c in past.T])
    goes_on = moves > 2 * margin  # a joint that is held beside its command does not
    clipped = np.flatnonzero(moving & goes_on & (beyond.mean(axis=0) >= MIN_CLIPPED_SHARE))
    saturated = np.flatnonzero(moving & (at_limit.mean(axis=0) >= MIN_SATURATED_SHARE))
    joints = clipped if len(clipped) else saturated if 2 * len(saturated) > moving.sum() else ()
    if len(joints):
        share = float(at_limit[:, joints].mean())
        yield Violation(
            where=f"data {contents.action_key}",
            found=f"{join_names([_joint(contents, d) for d in joints])} at a limit in {share:.0%} of the frames",
            expected="actions that reach as far as the states; check the joint limits of the recording",
        )


@MOTION_RULES.rule("gripper-range", severity="warning")
def gripper_range(contents: Contents) -> Iterator[Violation]:
    """The gripper of an SO-100 or SO-101 arm goes from 0 to 100; beyond, its calibration is wrong."""
    motion = contents.motion
    if motion is None or not detect_so_arm(contents) or detect_units(contents) in ("ticks", "radians"):
        return
    low, high = np.quantile(np.concatenate([f.state for f in motion.episodes.values()]), [0.01, 0.99], axis=0)
    wrong = detect_grippers(contents) & ((low < -GRIPPER_MARGIN) | (high > 100 + GRIPPER_MARGIN))
    for joint in np.flatnonzero(wrong).tolist():
        found = f"{_joint(contents, joint)} from {low[joint]:.4g} to {high[joint]:.4g}"
        yield Violation(f"data {contents.state_key}", found, "0 (closed) to 100 (open)")


@MOTION_RULES.rule("near-duplicates", severity="warning")
def near_duplicates(contents: Contents) -> Iterator[Violation]:
    """No two episodes take nearly the same path, as a replay or a cut copy does; equal ones are duplicate-episodes."""
    motion = contents.motion
    if motion is None:
        return
    found = {
        copy: one for copy, one in near_copies(motion, NEAR_COPY, contents.progress).items() if _moves(motion, one)
    }
    if found:
        copy, original = next(iter(found.items()))
        yield Violation(
            where=join_episodes(list(found)),
            found=f"nearly the path of another episode ({copy} is like {original})",
            expected="every demonstration once",
            episodes=tuple(found),
        )


@MOTION_RULES.rule("no-success", severity="warning")
def no_success(contents: Contents) -> Iterator[Violation]:
    """If the frames have a column `next.success`, it is true somewhere; else labels or demonstrations are bad."""
    labels = [t.success for t in contents.frame_tables]
    if labels and all(one is not None and not one.any() for one in labels):
        yield Violation(f"data {SUCCESS}", "false in every frame", "a success at the end of good demonstrations")


@MOTION_RULES.rule("single-take", severity="warning")
def single_take(contents: Contents) -> Iterator[Violation]:
    """The takes are episodes of their own, not one long episode."""
    if contents.info is None or len(contents.spans) != 1:
        return
    episode, span = next(iter(contents.spans.items()))
    if (seconds := (span.stop - span.start) / contents.fps) > MAX_SINGLE_TAKE_SECONDS:
        found = f"one episode of {seconds:.0f} s"
        yield Violation(join_episodes([episode]), found, "an episode for each take", episodes=(episode,))


def _idle(contents: Contents) -> Mapping[int, tuple[int, int]]:
    """Return episode -> its frames, and how many of them show no motion at its ends."""
    motion = contents.motion
    if motion is None or not (motion.state_range > 0).any():
        return {}
    ends = {e: idle_frames(f.state, motion.state_range) for e, f in motion.episodes.items()}
    return {e: (len(f.state), sum(ends[e])) for e, f in motion.episodes.items()}


def _lags(motion: Motion | None, fps: float) -> dict[int, int]:
    """Return episode -> frames from an action to the state that follows it, where that is certain."""
    if motion is None or not motion.same_space:
        return {}
    found, deltas = {}, set(motion.delta_episodes)
    for episode, frames in ((e, f) for e, f in motion.episodes.items() if e not in deltas):
        most = min(max(round(MAX_FOLLOW_SECONDS * fps) + 3, 5), (len(frames.state) - 1) // 4)
        values = follow_correlations(frames.state, frames.action, motion.state_range, most)
        best = int(np.argmax(values))
        usual = values[most : most + 3].max(initial=-1.0)
        is_certain = values[best] >= MIN_FOLLOW_CORRELATION
        if is_certain and (best in range(most, most + 3) or values[best] - usual >= MIN_FOLLOW_GAIN):
            found[episode] = best - most
    return found


def _moves(motion: Motion, episode: int) -> bool:
    frames: NDArray[np.float64] = motion.episodes[episode].state
    return sum(idle_frames(frames, motion.state_range)) < len(frames)


def _joint(contents: Contents, dimension: int) -> str:
    feature = contents.info.features.get(contents.state_key) if contents.info else None
    names: Sequence[str] = feature.flat_names if feature else ()
    return names[dimension] if dimension < len(names) else f"dim_{dimension}"

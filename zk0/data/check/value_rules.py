"""Rules about the values of states and actions: dimensions, names, units, motion, copies."""

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zk0.data.check.contents import Contents
from zk0.data.check.detected_units import detect_grippers, detect_so_arm, detect_units
from zk0.data.check.motion_measures import column_correlations
from zk0.data.check.rule import RuleGroup, Violation
from zk0.data.dataset_info import INFO_PATH
from zk0.data.episode_digests import episode_digest
from zk0.data.frame_table import EpisodeFrames
from zk0.data.units import MAX_DEGREES
from zk0.name_lists import join_episodes, join_names

VALUE_RULES = RuleGroup[[Contents], Violation]("States and actions", __name__)
MIN_EPISODE_FRAMES = 2
MIN_FOLLOWED, MAX_SCALE = 0.7, 5.0
"""Correlation of actions with states, and factor between their ranges, from which they are in two units."""


@VALUE_RULES.rule("dimensions")
def dimensions(contents: Contents) -> Iterator[Violation]:
    """State and action are vectors of the declared width in every file."""
    if contents.info is None:
        return
    for key, name in ((contents.state_key, "state"), (contents.action_key, "action")):
        feature = contents.info.features.get(key)
        widths = sorted({int(v.shape[1]) for t in contents.frame_tables if (v := getattr(t, name)) is not None})
        declared = feature.shape if feature else None
        if declared is not None and widths and [declared] != [(w,) for w in widths]:
            found = f"{join_names(widths)} numbers a row"
            yield Violation(f"data {key}", found, f"the declared shape {list(declared)}")


@VALUE_RULES.rule("joint-names", severity="warning")
def joint_name_rule(contents: Contents) -> Iterator[Violation]:
    """Every dimension of state and action has a name of its own."""
    if contents.info is None:
        return
    for key in (contents.state_key, contents.action_key):
        feature = contents.info.features.get(key)
        if feature and len(feature.shape) == 1 and len(set(feature.flat_names)) != feature.shape[0]:
            yield Violation(
                where=f"{INFO_PATH} features {key}",
                found=f"names {join_names(feature.flat_names)}",
                expected=f"{feature.shape[0]} different names",
            )


@VALUE_RULES.rule("constant-dimension", severity="warning")
def constant_dimension(contents: Contents) -> Iterator[Violation]:
    """Every joint moves; one that never does teaches nothing, and its std of 0 cannot normalize."""
    rows = contents.rows
    for key, name in ((contents.state_key, "state"), (contents.action_key, "action")):
        values: NDArray[Any] | None = getattr(rows, name, None)
        if values is None or len(values) < MIN_EPISODE_FRAMES or contents.info is None:
            continue
        still = np.flatnonzero((values == values[0]).all(axis=0))
        if len(still):
            feature = contents.info.features.get(key)
            names = feature.flat_names if feature else ()
            constant = join_names([names[d] if d < len(names) else f"dim_{d}" for d in still])
            yield Violation(f"data {key}", f"{constant} never changes", "joints that move")


@VALUE_RULES.rule("units", repairs=("convert-units",))
def units(contents: Contents) -> Iterator[Violation]:
    """The joints of an SO-100 or SO-101 arm are not in servo ticks or radians."""
    found = detect_units(contents)
    if contents.info is None or found not in ("ticks", "radians") or not detect_so_arm(contents):
        return
    yield Violation(
        where="data state, action",
        found="raw servo ticks (whole numbers, 0 to 4095)" if found == "ticks" else "radians (nothing beyond 3.5)",
        expected="degrees",
    )


@VALUE_RULES.rule("mixed-units")
def mixed_units(contents: Contents) -> Iterator[Violation]:
    """States and actions of an SO-100 or SO-101 arm are in one unit."""
    motion = contents.motion
    if motion is None or not motion.same_space or not detect_so_arm(contents):
        return
    joints = motion.moving & ~detect_grippers(contents)
    states, actions = (np.concatenate([getattr(f, k) for f in motion.episodes.values()]) for k in ("state", "action"))
    if not joints.any() or np.nanmedian(column_correlations(states, actions)[joints]) < MIN_FOLLOWED:
        return
    scale = float(np.median(motion.action_range[joints] / motion.state_range[joints]))
    if not 1 / MAX_SCALE <= scale <= MAX_SCALE:
        yield Violation(
            where="data state, action",
            found=f"actions that follow the states with {scale:.3g} times their range",
            expected="one unit: degrees (radians have 0.0175 times, servo ticks 11.4 times the range of degrees)",
        )


@VALUE_RULES.rule("implausible-range")
def implausible_range(contents: Contents) -> Iterator[Violation]:
    """No joint of an SO-100 or SO-101 arm turns further than 360 degrees."""
    rows = contents.rows
    if rows is None or not detect_so_arm(contents) or detect_units(contents) is not None:
        return
    for name in ("state", "action"):
        values = getattr(rows, name)
        largest = 0.0 if values is None else float(np.max(np.abs(values[np.isfinite(values)]), initial=0.0))
        if largest > MAX_DEGREES:
            yield Violation(f"data {name}", f"values up to {largest:.6g}", f"degrees, at most {MAX_DEGREES:g}")


@VALUE_RULES.rule("duplicate-episodes", repairs=("drop-duplicates",))
def duplicate_episodes(contents: Contents) -> Iterator[Violation]:
    """No two episodes have the same states and actions; a copy could be held out and trained on at once."""
    if copies := copied_episodes(contents):
        first, second = next(iter((original, copy) for copy, original in copies.items()))
        yield Violation(
            where=join_episodes(list(copies)),
            found=f"the states and actions of another episode ({second} is {first})",
            expected="every episode once",
        )


def copied_episodes(contents: Contents) -> dict[int, int]:
    """Return each episode that repeats an earlier one -> that earlier one."""
    rows = contents.rows
    if rows is None or rows.state is None or rows.action is None:
        return {}
    by_digest: dict[str, list[int]] = defaultdict(list)
    for episode, span in contents.spans.items():
        by_digest[episode_digest(EpisodeFrames(rows.state[span], rows.action[span]))].append(episode)
    return {copy: same[0] for same in by_digest.values() for copy in same[1:]}


@VALUE_RULES.rule("short-episodes", severity="warning")
def short_episodes(contents: Contents) -> Iterator[Violation]:
    """Every episode has at least two frames; a single frame shows no motion."""
    if contents.rows is None:
        return
    short = [e for e, s in contents.spans.items() if s.stop - s.start < MIN_EPISODE_FRAMES]
    if short:
        yield Violation(join_episodes(short), "a single frame", f"at least {MIN_EPISODE_FRAMES}")


@VALUE_RULES.rule("action-repeats-state", severity="warning")
def action_repeats_state(contents: Contents) -> Iterator[Violation]:
    """Actions are the commands of the leader arm. If each one is the next state, the policy learns to follow itself."""
    rows = contents.rows
    if rows is None or rows.state is None or rows.action is None or rows.state.shape != rows.action.shape:
        return
    spans = [s for s in contents.spans.values() if s.stop - s.start >= MIN_EPISODE_FRAMES]
    if spans and all(np.array_equal(rows.action[s][:-1], rows.state[s][1:]) for s in spans):
        yield Violation("data action", "each action is exactly the next state", "the commands of the leader arm")

"""Rules about states and actions: dimensions, names, units, copies."""

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zk0.records import Finding
from zk0.robot.check import say
from zk0.robot.check.contents import Contents
from zk0.robot.digest import episode_digest
from zk0.robot.frames import EpisodeFrames
from zk0.robot.info import INFO_PATH
from zk0.robot.units import MAX_DEGREES, MAX_RADIANS, Units, are_grippers, infer_units, is_so_arm

MIN_EPISODE_FRAMES = 2


def units_of(contents: Contents) -> Units | None:
    """The unit of states and actions, if the numbers leave only one."""
    rows = contents.rows
    if rows is None or rows.state is None or rows.action is None or rows.state.shape != rows.action.shape:
        return None
    return infer_units(np.concatenate([rows.state, rows.action]), grippers_of(contents))


def grippers_of(contents: Contents) -> NDArray[np.bool_]:
    """Which dimensions of state and action are grippers."""
    feature = contents.info.features.get(contents.state_key) if contents.info else None
    state = contents.rows.state if contents.rows else None
    dims = 0 if state is None else int(state.shape[1])
    return are_grippers(feature.flat_names if feature else (), dims, _is_so_arm(contents))


def percent_of(contents: Contents) -> NDArray[np.bool_]:
    """The grippers that go from 0 to 100, in whatever unit the joints are."""
    rows, grippers = contents.rows, grippers_of(contents)
    if rows is None or rows.state is None or rows.action is None or units_of(contents) != "radians":
        return np.zeros(len(grippers), dtype=bool)
    return grippers & (np.nanmax(np.abs(np.concatenate([rows.state, rows.action])), axis=0) > MAX_RADIANS)


def dimensions(contents: Contents) -> Iterator[Finding]:
    """State and action are vectors as wide as declared, in every file."""
    if contents.info is None:
        return
    for key, name in ((contents.state_key, "state"), (contents.action_key, "action")):
        feature = contents.info.features.get(key)
        widths = sorted({int(v.shape[1]) for f in contents.frames if (v := getattr(f, name)) is not None})
        declared = feature.shape if feature else None
        if declared is not None and widths and [declared] != [(w,) for w in widths]:
            yield Finding(
                rule="dimensions",
                where=f"data {key}",
                found=f"{say.some(widths)} numbers a row",
                expected=f"the declared shape {list(declared)}",
            )


def joint_names(contents: Contents) -> Iterator[Finding]:
    """Every dimension has a name; state and action of a follower arm have the same ones."""
    if contents.info is None:
        return
    for key in (contents.state_key, contents.action_key):
        feature = contents.info.features.get(key)
        if feature and len(feature.shape) == 1 and len(set(feature.flat_names)) != feature.shape[0]:
            yield Finding(
                rule="joint-names",
                severity="warning",
                where=f"{INFO_PATH} features {key}",
                found=f"names {say.some(feature.flat_names)}",
                expected=f"{feature.shape[0]} different names",
            )


def constant_dimensions(contents: Contents) -> Iterator[Finding]:
    """A joint that never moves teaches nothing, and its std of 0 cannot normalise."""
    rows = contents.rows
    for key, name in ((contents.state_key, "state"), (contents.action_key, "action")):
        values: NDArray[Any] | None = getattr(rows, name, None)
        if values is None or len(values) < MIN_EPISODE_FRAMES or contents.info is None:
            continue
        still = np.flatnonzero((values == values[0]).all(axis=0))
        if len(still):
            feature = contents.info.features.get(key)
            names = feature.flat_names if feature else ()
            yield Finding(
                rule="constant-dimension",
                severity="warning",
                where=f"data {key}",
                found=f"{say.some([names[d] if d < len(names) else f'dim_{d}' for d in still])} never changes",
                expected="joints that move",
            )


def units(contents: Contents) -> Iterator[Finding]:
    """An SO arm's joints are in degrees, not in servo ticks or radians."""
    found = units_of(contents)
    if contents.info is None or found not in ("ticks", "radians") or not _is_so_arm(contents):
        return
    yield Finding(
        rule="units",
        where="data state, action",
        found="raw servo ticks (whole numbers, 0 to 4095)" if found == "ticks" else "radians (nothing beyond 3.5)",
        expected="degrees",
        repair="convert-units",
    )


def plausible_range(contents: Contents) -> Iterator[Finding]:
    """No joint of an SO arm turns further than once around."""
    rows = contents.rows
    if rows is None or not _is_so_arm(contents) or units_of(contents) is not None:
        return
    for name in ("state", "action"):
        values = getattr(rows, name)
        largest = 0.0 if values is None else float(np.max(np.abs(values[np.isfinite(values)]), initial=0.0))
        if largest > MAX_DEGREES:
            yield Finding(
                rule="implausible-range",
                where=f"data {name}",
                found=f"values up to {largest:.6g}",
                expected=f"degrees, at most {MAX_DEGREES:g}",
            )


def duplicate_episodes(contents: Contents) -> Iterator[Finding]:
    """No episode is there twice: a copy would be held out and trained on at once."""
    if copies := copied_episodes(contents):
        first, second = next(iter((original, copy) for copy, original in copies.items()))
        yield Finding(
            rule="duplicate-episodes",
            where=say.episodes(list(copies)),
            found=f"the states and actions of another episode ({second} is {first})",
            expected="every episode once",
            repair="drop-duplicates",
        )


def copied_episodes(contents: Contents) -> dict[int, int]:
    """Each episode that repeats an earlier one -> that earlier one."""
    rows = contents.rows
    if rows is None or rows.state is None or rows.action is None:
        return {}
    by_digest: dict[str, list[int]] = defaultdict(list)
    for episode, span in contents.spans.items():
        by_digest[episode_digest(EpisodeFrames(rows.state[span], rows.action[span]))].append(episode)
    return {copy: same[0] for same in by_digest.values() for copy in same[1:]}


def short_episodes(contents: Contents) -> Iterator[Finding]:
    """An episode of one frame has no motion in it."""
    if contents.rows is None:
        return
    short = [e for e, s in contents.spans.items() if s.stop - s.start < MIN_EPISODE_FRAMES]
    if short:
        yield Finding(
            rule="short-episodes",
            severity="warning",
            where=say.episodes(short),
            found="a single frame",
            expected=f"at least {MIN_EPISODE_FRAMES}",
        )


def action_repeats_state(contents: Contents) -> Iterator[Finding]:
    """Actions that are the next state: no leader arm was recorded, the policy learns to follow itself."""
    rows = contents.rows
    if rows is None or rows.state is None or rows.action is None or rows.state.shape != rows.action.shape:
        return
    spans = [s for s in contents.spans.values() if s.stop - s.start >= MIN_EPISODE_FRAMES]
    if spans and all(np.array_equal(rows.action[s][:-1], rows.state[s][1:]) for s in spans):
        yield Finding(
            rule="action-repeats-state",
            severity="warning",
            where="data action",
            found="each action is exactly the next state",
            expected="what the leader arm commanded",
        )


def _is_so_arm(contents: Contents) -> bool:
    info = contents.info
    feature = info.features.get(contents.state_key) if info else None
    return info is not None and is_so_arm(info.robot_type, feature.flat_names if feature else ())


RULES = (
    dimensions,
    joint_names,
    constant_dimensions,
    units,
    plausible_range,
    duplicate_episodes,
    short_episodes,
    action_repeats_state,
)

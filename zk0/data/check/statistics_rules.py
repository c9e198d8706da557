"""Rules about meta/stats.json."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zk0.data.check.contents import STATISTICS_PATH, Contents
from zk0.data.check.reading_rules import STATISTICS_MISSING
from zk0.data.check.rule import RuleGroup, Severity, Violation
from zk0.data.dataset_folder import BrokenFile
from zk0.data.dataset_info import DEFAULT_FEATURES
from zk0.data.episode_table import EPISODE_STATISTICS_PATH, EPISODES_DIR, read_episode_statistics
from zk0.name_lists import join_episodes, join_names
from zk0.records import ACTION, STATE

ORDERED = ("min", "q01", "q10", "q50", "q90", "q99", "max")
"""Moments of meta/stats.json that ascend; LeRobot writes the quantiles since 0.4."""

STATISTICS_RULES = RuleGroup[[Contents], Violation]("Statistics", __name__)


@STATISTICS_RULES.rule(
    "statistics-unknown",
    severity="warning",
    error_if="they are of state or action",
    repairs=("recompute-statistics",),
)
def statistics_unknown(contents: Contents) -> Iterator[Violation]:
    """`meta/stats.json` has statistics of the dataset's features only."""
    if contents.info is None or contents.statistics is None:
        return
    if extra := sorted(k for k in contents.statistics if k not in _features(contents)):
        found = f"statistics of {join_names(extra)}, which the dataset does not have"
        yield Violation(STATISTICS_PATH, found, "statistics of every feature", _severity(extra))


@STATISTICS_RULES.also_finds(STATISTICS_MISSING)
def statistics_missing(contents: Contents) -> Iterator[Violation]:
    """Find statistics of cameras, state or action that a readable meta/stats.json lacks."""
    if contents.info is None or contents.statistics is None:
        return
    needed = [k for k in (*contents.info.cameras, STATE, ACTION) if k in _features(contents)]
    if lacking := [k for k in needed if k not in contents.statistics]:
        found = f"no statistics of {join_names(lacking)}"
        yield Violation(STATISTICS_PATH, found, "statistics of every feature", _severity(lacking))


@STATISTICS_RULES.rule("statistics-wrong", repairs=("recompute-statistics",))
def statistics_wrong(contents: Contents) -> Iterator[Violation]:
    """Count, mean, std, min and max of state and action in `meta/stats.json` are those of the frames in `data/`."""
    if contents.info is None or contents.statistics is None or contents.rows is None:
        return
    longest = max((rows.stop - rows.start for rows in contents.spans.values()), default=0)
    for key, name in ((contents.state_key, "state"), (contents.action_key, "action")):
        values = getattr(contents.rows, name, None)
        if key in contents.statistics and values is not None and np.isfinite(values).all():
            rows = np.asarray(values, dtype=np.float64)
            yield from _wrong_moments(key, contents.statistics[key], rows, longest)


@STATISTICS_RULES.rule("episode-statistics", severity="warning", repairs=("recompute-statistics",))
def episode_statistics(contents: Contents) -> Iterator[Violation]:
    """Mean, std, min and max of state and action that are stated for each episode are those of its frames."""
    lengths = {entry.index: entry.length for entry in contents.episodes or ()}
    if contents.info is None or contents.rows is None or lengths.keys() != contents.rows.spans.keys():
        return  # other numbers: rules about counts and numbers tell
    complete = {e: s for e, s in contents.spans.items() if s.stop - s.start == lengths[e] > 0}
    names = {contents.state_key: "state", contents.action_key: "action"}
    try:
        stated = read_episode_statistics(contents.folder, contents.info, tuple(names))
    except BrokenFile:
        return  # the rule about the episode table tells; conversion from v2.1 computes them anew
    file = EPISODES_DIR if contents.info.is_v3 else EPISODE_STATISTICS_PATH
    for key, name in names.items():
        if (values := getattr(contents.rows, name)) is None:
            continue
        wrong = dict(_wrong_episodes(stated[key], complete, np.asarray(values, dtype=np.float64)))
        if wrong:
            first = next(iter(wrong))
            where = f"{file} {key}, {join_episodes(list(wrong))}"
            found = f"in episode {first} {wrong[first]}"
            yield Violation(where, found, "the statistics of the frames in data", episodes=tuple(wrong))


def _wrong_episodes(
    stated: Mapping[int, Any], rows_of: Mapping[int, slice], values: NDArray[np.float64]
) -> Iterator[tuple[int, str]]:
    """Yield each episode with wrong statistics of a feature, and how they differ from those of its frames."""
    for episode in sorted(stated.keys() & rows_of.keys()):
        rows = values[rows_of[episode]]
        if np.isfinite(rows).all() and (found := next(_moment_differences(stated[episode], rows, len(rows)), None)):
            yield episode, found


@STATISTICS_RULES.rule("statistics-order", severity="warning", repairs=("recompute-statistics",))
def statistics_order(contents: Contents) -> Iterator[Violation]:
    """Minimum, quantiles and maximum of state and action ascend in `meta/stats.json`; policies normalize by them."""
    for key in (contents.state_key, contents.action_key):
        stated = (contents.statistics or {}).get(key, {})
        present = [(name, v) for name in ORDERED if (v := _vector(stated.get(name))) is not None]
        for (low, a), (high, b) in pairwise(present):
            if a.shape == b.shape and (places := np.flatnonzero(~(a <= b + 1e-3))).size:
                found = f"{low} {a[places[0]]:.6g} above {high} {b[places[0]]:.6g} in dimension {places[0]}"
                yield Violation(f"{STATISTICS_PATH} {key}", found, "ascending values")
                break


def _features(contents: Contents) -> set[str]:
    return {*(contents.info.features if contents.info else ()), *DEFAULT_FEATURES}


def _severity(features: Sequence[str]) -> Severity:
    return "error" if {STATE, ACTION} & set(features) else "warning"


def _wrong_moments(key: str, stated: Any, values: NDArray[np.float64], longest: int) -> Iterator[Violation]:
    """Compare the stated moments of one feature with those of its values; yield the first difference."""
    if found := next(_moment_differences(stated, values, longest), None):
        yield Violation(f"{STATISTICS_PATH} {key}", found, "the statistics of the frames in data")
        return
    count = _vector(stated.get("count"))
    if count is not None and count.tolist() != [len(values)]:
        yield Violation(f"{STATISTICS_PATH} {key}", f"count {join_names(count.tolist())}", str(len(values)))


def _moment_differences(stated: Any, values: NDArray[np.float64], longest: int) -> Iterator[str]:
    """Yield how each stated moment differs from that of the values, where it does.

    Args:
        stated: moments by name.
        values: (frames, dims), all finite.
        longest: frames of the longest episode, which decides the rounding error of the writer.
    """
    spread = values.std(axis=0)
    base = 1e-2 * spread + 1e-3
    of_mean, of_std = _rounding_errors(values, spread, longest)
    for name, true, allowed in (
        ("mean", values.mean(axis=0), base + of_mean),
        ("std", spread, base + of_std),
        ("min", values.min(axis=0), base),
        ("max", values.max(axis=0), base),
    ):
        if found := _difference(name, stated.get(name), true, allowed):
            yield found


def _rounding_errors(
    values: NDArray[np.float64], spread: NDArray[np.float64], longest: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the largest errors of mean and std that LeRobot makes by rounding to float32, per dimension.

    LeRobot adds the values and their squares of an episode one after the other in float32, so both means have a
    relative error of up to half an epsilon for each frame, and computes the variance as their difference. This matters
    only for a joint that stands still away from zero: its std may be stated as 0, or as several tenths of a degree.
    """
    square = (values**2).mean(axis=0)
    relative = longest * float(np.finfo(np.float32).eps) / 2
    noise = np.sqrt(relative * square)
    tiny = float(np.finfo(np.float64).tiny)
    return relative * np.sqrt(square), noise * (noise / np.maximum(np.maximum(spread, noise), tiny))


def _difference(name: str, stated: Any, expected: NDArray[np.float64], allowed: NDArray[np.float64]) -> str | None:
    """Return how a stated moment differs from the true one by more than is allowed; None if it does not."""
    found = _vector(stated)
    if found is None or found.shape != expected.shape or not np.isfinite(found).all():
        return f"{name} {str(stated)[:60]}"
    excess = np.abs(found - expected) - allowed
    worst = int(np.argmax(excess))
    if excess[worst] <= 0:
        return None
    return f"{name} {found[worst]:.6g} in dimension {worst}, where it is {expected[worst]:.6g}"


def _vector(value: Any) -> NDArray[np.float64] | None:
    try:
        return np.asarray(value, dtype=np.float64).reshape(-1) if value is not None else None
    except (TypeError, ValueError):
        return None

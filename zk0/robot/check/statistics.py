"""Rules about meta/stats.json."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zk0.records import ACTION, STATE, Finding
from zk0.robot.check import say
from zk0.robot.check.contents import STATISTICS_PATH, Contents
from zk0.robot.check.format import DEFAULT_FEATURES


def statistics(contents: Contents) -> Iterator[Finding]:
    """meta/stats.json has the moments of the frames that are there."""
    if contents.info is None or contents.statistics is None:
        return
    known = {*contents.info.features, *DEFAULT_FEATURES}
    extra = sorted(k for k in contents.statistics if k not in known)
    lacking = [k for k in (*contents.info.cameras, STATE, ACTION) if k in known and k not in contents.statistics]
    for rule, names, what in (
        ("statistics-unknown", extra, "moments of {}, which the data set does not have"),
        ("statistics-missing", lacking, "no moments of {}"),
    ):
        if names:
            yield Finding(
                rule=rule,
                severity="error" if {STATE, ACTION} & set(names) else "warning",
                where=STATISTICS_PATH,
                found=what.format(say.some(names)),
                expected="moments of every feature",
                repair="recompute-statistics",
            )
    for key, name in ((contents.state_key, "state"), (contents.action_key, "action")):
        values = getattr(contents.rows, name, None)
        if key in contents.statistics and values is not None and np.isfinite(values).all():
            yield from _wrong_moments(key, contents.statistics[key], values)


def _wrong_moments(key: str, stated: Any, values: NDArray[Any]) -> Iterator[Finding]:
    exact = np.asarray(values, dtype=np.float64)
    spread = exact.std(axis=0)
    true = {"mean": exact.mean(axis=0), "std": spread, "min": exact.min(axis=0), "max": exact.max(axis=0)}
    for name, expected in true.items():
        found = _vector(stated.get(name))
        if found is None or found.shape != expected.shape or not np.isfinite(found).all():
            said, wrong = f"{name} {str(stated.get(name))[:60]}", True
        else:
            off = np.abs(found - expected)
            worst = int(np.argmax(off))
            wrong = bool((off > 1e-2 * spread + 1e-3).any())
            said = f"{name} {found[worst]:.6g} in dimension {worst}, where it is {expected[worst]:.6g}"
        if wrong:
            yield Finding(
                rule="statistics-wrong",
                where=f"{STATISTICS_PATH} {key}",
                found=said,
                expected="the moments of the frames in data",
                repair="recompute-statistics",
            )
            return
    count = _vector(stated.get("count"))
    if count is not None and count.tolist() != [len(exact)]:
        yield Finding(
            rule="statistics-wrong",
            where=f"{STATISTICS_PATH} {key}",
            found=f"count {say.some(count.tolist())}",
            expected=str(len(exact)),
            repair="recompute-statistics",
        )


def _vector(value: Any) -> NDArray[np.float64] | None:
    try:
        return np.asarray(value, dtype=np.float64).reshape(-1) if value is not None else None
    except (TypeError, ValueError):
        return None


RULES = (statistics,)

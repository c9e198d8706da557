"""The statistics of state and action that a saved policy carries, for a session that normalizes with them."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zk0.errors import PolicyError
from zk0.policy.published_config import resolve_policy_path
from zk0.policy.stored_statistics import STORED_MOMENTS, read_stored_moments
from zk0.records import ACTION, STATE, Moments, Statistics
from zk0.settings.training_settings import BASE, BUILT_IN_POLICIES

_MAX_DIMENSIONS = 1_000
_SMALLEST_STD = 1e-6


def carried_statistics(path: str, revision: str | None = None) -> Statistics | None:
    """Return the statistics of state and action in a saved policy's preprocessor; None if it has none.

    A policy has none if it is a tiny one, if it was saved without processors (before LeRobot 0.4), or if its statistics
    are those of several robots under other keys, as in a base model that was never trained on one robot.

    Args:
        path: `policy.path` of the settings.
        revision: commit, branch or tag on the Hub.

    Raises:
        PolicyError: the files cannot be read, or a number is not finite or has a standard deviation of zero.
        HubUnavailable: the Hub cannot be reached now.
    """
    if path in BUILT_IN_POLICIES and path != BASE:
        return None
    found = read_stored_moments(resolve_policy_path(path), (STATE, ACTION), revision)
    if not all(name in found.get(key, {}) for key in (STATE, ACTION) for name in ("mean", "std")):
        return None
    return Statistics(state=_moments(found[STATE], STATE, path), action=_moments(found[ACTION], ACTION, path))


def _moments(arrays: Mapping[str, NDArray[Any]], key: str, path: str) -> Moments:
    mean, std = (np.asarray(arrays[name], dtype=np.float64).ravel() for name in ("mean", "std"))
    least, most = (np.asarray(arrays.get(name, mean), dtype=np.float64).ravel() for name in ("min", "max"))
    if len(mean) > _MAX_DIMENSIONS or not len(mean) == len(std) == len(least) == len(most):
        sizes = [len(part) for part in (mean, std, least, most)]
        raise PolicyError(f"{path}: the statistics of {key} have {sizes} values, expected one for each joint")
    if not all(np.isfinite(part).all() for part in (mean, std, least, most)) or (std < _SMALLEST_STD).any():
        raise PolicyError(
            f"{path}: the statistics of {key} are not finite or have a standard deviation of zero "
            f'(mean {mean.tolist()}, std {std.tolist()}); set normalization = "pooled"'
        )
    fields = zip(STORED_MOMENTS, (mean, std, least, most), strict=True)
    return Moments(count=1, **{name: tuple(values.tolist()) for name, values in fields})

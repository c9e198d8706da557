"""The normalization statistics that a saved policy carries in its preprocessor."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from zk0.errors import PolicyError, first_line
from zk0.policy.published_config import locate_policy_file
from zk0.policy.smolvla.build import resolve_policy_path
from zk0.records import ACTION, STATE, Moments, Statistics
from zk0.settings.training_settings import TINY

PREPROCESSOR_FILE = "policy_preprocessor.json"
_NORMALIZER = "normalizer_processor"
_MOMENTS = ("mean", "std", "min", "max")
_MAX_JSON_BYTES = 40_000_000
"""It may hold the files of a vision-language model, of at most 32 MB."""
_MAX_DIMENSIONS = 1_000
_SMALLEST_STD = 1e-6


def carried_statistics(path: str, revision: str | None = None) -> Statistics | None:
    """Return the statistics of state and action in a saved policy's preprocessor; None if it has none.

    A policy has none if it is `tiny`, if it was saved without processors (before LeRobot 0.4), or if its statistics are
    those of several robots under other keys, as in a base model that was never trained on one robot.

    Args:
        path: `policy.path` of the settings.
        revision: commit, branch or tag on the Hub.

    Raises:
        PolicyError: the files cannot be read, or a number is not finite or has a standard deviation of zero.
        HubUnavailable: the Hub cannot be reached now.
    """
    if path == TINY:
        return None
    folder = resolve_policy_path(path)
    described = locate_policy_file(folder, PREPROCESSOR_FILE, revision)
    if described is None or (state_file := _normalizer_file(described)) is None:
        return None
    stored = locate_policy_file(folder, state_file, revision)
    if stored is None:
        raise PolicyError(f"{path}: {PREPROCESSOR_FILE} names {state_file}, which is missing; save the policy again")
    arrays = _read_arrays(stored)
    if not all(f"{key}.{name}" in arrays for key in (STATE, ACTION) for name in ("mean", "std")):
        return None
    return Statistics(state=_moments(arrays, STATE, path), action=_moments(arrays, ACTION, path))


def _normalizer_file(described: Path) -> str | None:
    """Name of the normalizer's file of tensors, from the preprocessor's description; None if there is none."""
    if described.stat().st_size > _MAX_JSON_BYTES:
        raise PolicyError(f"{described}: {described.stat().st_size} bytes, expected at most {_MAX_JSON_BYTES}")
    try:
        steps = json.loads(described.read_text(encoding="utf-8"))["steps"]
        named = [s.get("state_file") for s in steps if s.get("registry_name") == _NORMALIZER]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
        raise PolicyError(f"{described}: not the description of a preprocessor ({first_line(e)})") from e
    if not named or named[0] is None:
        return None
    if not isinstance(named[0], str) or Path(named[0]).name != named[0]:
        raise PolicyError(f"{described}: state_file is {named[0]!r}, expected the name of a file beside it")
    return named[0]


def _read_arrays(file: Path) -> dict[str, NDArray[Any]]:
    wanted = {f"{key}.{name}" for key in (STATE, ACTION) for name in _MOMENTS}
    try:
        with safe_open(file, "np") as tensors:
            return {name: tensors.get_tensor(name) for name in tensors.keys() if name in wanted}  # noqa: SIM118
    except (OSError, SafetensorError, TypeError) as e:
        raise PolicyError(f"{file}: cannot be read ({first_line(e)}); expected a normalizer's statistics") from e


def _moments(arrays: Mapping[str, NDArray[Any]], key: str, path: str) -> Moments:
    mean, std = (np.asarray(arrays[f"{key}.{name}"], dtype=np.float64).ravel() for name in ("mean", "std"))
    least, most = (np.asarray(arrays.get(f"{key}.{name}", mean), dtype=np.float64).ravel() for name in ("min", "max"))
    if len(mean) > _MAX_DIMENSIONS or not len(mean) == len(std) == len(least) == len(most):
        sizes = [len(part) for part in (mean, std, least, most)]
        raise PolicyError(f"{path}: the statistics of {key} have {sizes} values, expected one for each joint")
    if not all(np.isfinite(part).all() for part in (mean, std, least, most)) or (std < _SMALLEST_STD).any():
        raise PolicyError(
            f"{path}: the statistics of {key} are not finite or have a standard deviation of zero "
            f'(mean {mean.tolist()}, std {std.tolist()}); set normalization = "pooled"'
        )
    fields = zip(_MOMENTS, (mean, std, least, most), strict=True)
    return Moments(count=1, **{name: tuple(values.tolist()) for name, values in fields})

"""The moments that a saved policy's preprocessor normalizes with, by feature key, as its files hold them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from zk0.errors import PolicyError, first_line
from zk0.policy.published_config import MAX_JSON_BYTES, locate_policy_file

PREPROCESSOR_FILE = "policy_preprocessor.json"
STORED_MOMENTS = ("mean", "std", "min", "max")
_NORMALIZER = "normalizer_processor"


def read_stored_moments(
    folder: str, keys: Sequence[str], revision: str | None = None
) -> dict[str, dict[str, NDArray[Any]]]:
    """Return the arrays of mean, std, min and max of some features, by key; empty if the policy has no preprocessor.

    Args:
        folder: the policy's folder or its name on the Hub.
        keys: of the features.
        revision: commit, branch or tag on the Hub.

    Raises:
        PolicyError: the files cannot be read.
        HubUnavailable: the Hub cannot be reached now.
    """
    described = locate_policy_file(folder, PREPROCESSOR_FILE, revision)
    if described is None or (state_file := _normalizer_file(described)) is None:
        return {}
    stored = locate_policy_file(folder, state_file, revision)
    if stored is None:
        raise PolicyError(f"{folder}: {PREPROCESSOR_FILE} names {state_file}, which is missing; save the policy again")
    found: dict[str, dict[str, NDArray[Any]]] = {}
    try:
        with safe_open(stored, "np") as tensors:
            for name in tensors.keys():  # noqa: SIM118
                key, _, moment = name.rpartition(".")
                if key in keys and moment in STORED_MOMENTS:
                    found.setdefault(key, {})[moment] = tensors.get_tensor(name)
    except (OSError, SafetensorError, TypeError) as e:
        raise PolicyError(f"{stored}: cannot be read ({first_line(e)}); expected a normalizer's statistics") from e
    return found


def _normalizer_file(described: Path) -> str | None:
    """Name of the normalizer's file of tensors, from the preprocessor's description; None if there is none."""
    if described.stat().st_size > MAX_JSON_BYTES:
        raise PolicyError(f"{described}: {described.stat().st_size} bytes, expected at most {MAX_JSON_BYTES}")
    try:
        steps = json.loads(described.read_text(encoding="utf-8"))["steps"]
        named = [s.get("state_file") for s in steps if s.get("registry_name") == _NORMALIZER]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
        raise PolicyError(f"{described}: not the description of a preprocessor ({first_line(e)})") from e
    if not named or named[0] is None:
        return None
    if not isinstance(named[0], str) or Path(named[0]).name != named[0]:
        raise PolicyError(f"{described}: state_file is {named[0]!r}, expected the name of a file beside it")
    return named[0]

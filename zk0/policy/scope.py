"""Which parameters of a policy are trained: those whose names match patterns (`training.scope`)."""

import re
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any

from zk0.errors import PolicyError

_KINDS = {"training.scope": "parameter", "training.personal": "parameter of training.scope"}
"""What the patterns of a setting choose from."""
_DESCRIBED = 5
"""Patterns without a match that a message describes."""


def matching_names(patterns: Iterable[str], names: Iterable[str]) -> set[str]:
    """Return the names that match at least one pattern.

    >>> sorted(matching_names(["model.*_proj.bias"], ["model.in_proj.bias", "model.in_proj.weight", "vlm.proj.bias"]))
    ['model.in_proj.bias']
    """
    chosen = tuple(patterns)
    return {name for name in names if any(fnmatchcase(name, pattern) for pattern in chosen)}


def unmatched_patterns(patterns: Iterable[str], names: Sequence[str], setting: str = "training.scope") -> list[str]:
    """Return a sentence for each pattern of a setting that no name matches, with the nearest names.

    >>> unmatched_patterns(["model.inproj.*"], ["model.in_proj.bias", "vlm.norm.weight"])
    ['training.scope: model.inproj.* matches no parameter; the nearest are model.in_proj.bias']
    """
    missing = [pattern for pattern in patterns if not matching_names([pattern], names)]
    described = [f"{setting}: {pattern} matches no {_KINDS[setting]}{_nearest(pattern, names)}" for pattern in missing]
    more = [f"{setting}: {len(missing) - _DESCRIBED} more patterns match no {_KINDS[setting]}"]
    return described[:_DESCRIBED] + (more if len(missing) > _DESCRIBED else [])


def keep_trained(policy: Any, patterns: Sequence[str]) -> None:
    """Freeze the trainable parameters that match no pattern.

    Raises:
        PolicyError: no parameter matches a pattern, or only parameters that cannot be trained.
    """
    parameters = dict(policy.named_parameters())
    trainable = _trainable_names(policy)
    faults = unmatched_patterns(patterns, list(parameters))
    for pattern in patterns:
        found = sorted(matching_names([pattern], parameters))
        if found and not matching_names([pattern], trainable):
            faults.append(
                f"training.scope: {pattern} matches only parameters that LeRobot never trains (first: {found[0]}); "
                "leave it out"
            )
    if faults:
        raise PolicyError("; ".join(faults))
    kept = matching_names(patterns, trainable)
    for name in trainable:
        parameters[name].requires_grad_(name in kept)


def mark_personal(policy: Any, patterns: Sequence[str]) -> None:
    """Mark the trainable parameters that match a pattern as those that each client keeps for itself.

    Raises:
        PolicyError: a pattern matches no parameter that is trained, or no parameter would be sent.
    """
    trainable = _trainable_names(policy)
    faults = personal_faults(patterns, trainable)
    if faults:
        raise PolicyError("; ".join(faults))
    policy.personal_parameters = frozenset(matching_names(patterns, trainable))


def personal_faults(patterns: Sequence[str], trained: Sequence[str]) -> list[str]:
    """Return what is wrong with the patterns of `training.personal`, for the names of the trained parameters."""
    faults = unmatched_patterns(patterns, trained, "training.personal")
    if patterns and len(matching_names(patterns, trained)) == len(trained):
        faults.append(
            f"training.personal: all {len(trained)} parameters of training.scope match, so that none would be sent; "
            "expected patterns of a part of them"
        )
    return faults


def _trainable_names(policy: Any) -> list[str]:
    return sorted(name for name, parameter in policy.named_parameters() if parameter.requires_grad)


def _nearest(pattern: str, names: Sequence[str]) -> str:
    found = get_close_matches(re.sub(r"[*?]+", "", pattern), names, n=3, cutoff=0.5)
    return f"; the nearest are {', '.join(found)}" if found else ""

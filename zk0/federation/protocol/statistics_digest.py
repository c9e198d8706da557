"""How limits, journal and audit of a node name the statistics that a server sends with its plans."""

import hashlib
import json
from typing import Any

from pydantic import ValidationError

from zk0.records import Statistics

_DIGITS = 16
_FIGURES = 9
"""Significant figures: a resumed session may compute the last ones of the same statistics in another way."""


def statistics_label(statistics: Statistics | None) -> str:
    """Return the digest of the statistics in a plan, in words; equal statistics have equal ones.

    >>> statistics_label(None)
    'the own ones'
    """
    if statistics is None:
        return "the own ones"
    return _label({part: _rounded(moments) for part, moments in statistics.model_dump(mode="json").items()})


def requested_statistics_label(value: Any) -> str:
    """Return the same of the JSON value in a request, also where it is no statistics.

    Raises:
        RecursionError: the value is nested too deep.
    """
    try:
        return statistics_label(None if value is None else Statistics.model_validate(value))
    except ValidationError:
        return _label(value)


def _rounded(moments: dict[str, Any]) -> dict[str, Any]:
    return {
        name: values if name == "count" else [float(f"{value:.{_FIGURES}g}") for value in values]
        for name, values in moments.items()
    }


def _label(value: Any) -> str:
    text = json.dumps(value, sort_keys=True)
    return f"with digest {hashlib.sha256(text.encode()).hexdigest()[:_DIGITS]}"

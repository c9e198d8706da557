"""A round's numbers as others may see them: no folder of this machine."""

import json
import re
from typing import Any

from zk0.records import RoundRecord
from zk0.report.figures import last_component, public_name

_ABSOLUTE = re.compile(r"(?<![\w./~-])(?:~|[A-Za-z]:)?[/\\](?!/)[^\s:;,'\"()\[\]]+")


def public_metrics(record: RoundRecord) -> str:
    """metrics.json of a saved policy: the round's record, with data sets and paths by their last name only."""
    return json.dumps(_public(record.model_dump(mode="json")), indent=2, ensure_ascii=False, allow_nan=False)


def without_folders(text: str) -> str:
    """Text in which absolute paths have lost their folders.

    >>> without_folders("ended with -9; see /home/someone/outputs/x/worker-0.log, or lab/set")
    'ended with -9; see worker-0.log, or lab/set'
    """
    return _ABSOLUTE.sub(lambda path: last_component(path[0]), text)


def _public(value: Any, key: str = "") -> Any:
    if isinstance(value, dict):
        return {k: _public(v, k) for k, v in value.items()}
    if isinstance(value, list):
        return [_public(v, key) for v in value]
    if isinstance(value, str):
        return public_name(value) if key == "dataset" else without_folders(value)
    return value

"""What others may see: no folder of this machine in any name or text that leaves the house."""

import json
import re
from typing import Any

from zk0.records import RoundRecord

_ABSOLUTE = re.compile(r"(?<![\w./~-])(?:~|[A-Za-z]:)?[/\\](?!/)[^\s:;,'\"()\[\]]+")


def public_metrics(record: RoundRecord) -> str:
    """metrics.json of a saved policy: the round's record, with data sets and paths by their last name only."""
    return json.dumps(public_values(record.model_dump(mode="json")), indent=2, ensure_ascii=False, allow_nan=False)


def public_values(value: Any, key: str = "") -> Any:
    """JSON values in which data sets and absolute paths are named by their last component only.

    >>> public_values({"dataset": "local:/home/someone/place", "why": ["see /tmp/a.log"], "rounds": 3})
    {'dataset': 'local:place', 'why': ['see a.log'], 'rounds': 3}
    """
    if isinstance(value, dict):
        return {k: public_values(v, k) for k, v in value.items()}
    if isinstance(value, list):
        return [public_values(v, key) for v in value]
    if isinstance(value, str):
        return public_name(value) if key == "dataset" else without_folders(value)
    return value


def public_name(dataset: str) -> str:
    """A data set as others may see it: of a folder only its last component.

    >>> public_name("hf:lab/so101"), public_name("local:/home/someone/place/"), public_name("sim:lift")
    ('hf:lab/so101', 'local:place', 'sim:lift')
    """
    scheme, colon, rest = dataset.partition(":")
    if colon and scheme == "local":
        return f"local:{last_component(rest)}"
    return (
        dataset
        if "\\" not in dataset and dataset.count("/") <= 1 and dataset[:1] not in "/~."
        else (f"local:{last_component(dataset)}")
    )


def last_component(path: str) -> str:
    """The last name in a path of either kind of slash.

    >>> last_component("/home/someone/place/"), last_component("C:\\\\data\\\\place")
    ('place', 'place')
    """
    parts = [p for p in path.replace("\\", "/").split("/") if p]
    return parts[-1] if parts else path


def without_folders(text: str) -> str:
    """Text in which absolute paths have lost their folders.

    >>> without_folders("ended with -9; see /home/someone/outputs/x/worker-0.log, or lab/set")
    'ended with -9; see worker-0.log, or lab/set'
    """
    return _ABSOLUTE.sub(lambda path: last_component(path[0]), text)

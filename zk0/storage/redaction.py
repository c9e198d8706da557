"""Remove this machine's folders from every name and text that is published or sent.

Of a local dataset and of an absolute path only the last component stays.
"""

import json
import re
from typing import Any

from zk0.records import RoundRecord

_ABSOLUTE = re.compile(r"(?<![\w./~-])(?:~|[A-Za-z]:)?[/\\](?!/)[^\s:;,'\"()\[\]]+")


def public_metrics(record: RoundRecord) -> str:
    """Content of a saved policy's metrics.json: the round's record, redacted by `public_values`."""
    return json.dumps(public_values(record.model_dump(mode="json")), indent=2, ensure_ascii=False, allow_nan=False)


def public_values(value: Any, key: str = "") -> Any:
    """The same JSON values, with local datasets and absolute paths shortened to their last component.

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
    """Name of a dataset without the folder that it lies in; names on the Hub stay as they are.

    >>> public_name("hf:lab/so101"), public_name("local:/home/someone/place/"), public_name("sim:lift")
    ('hf:lab/so101', 'local:place', 'sim:lift')
    """
    scheme, colon, rest = dataset.partition(":")
    if colon and scheme == "local":
        return f"local:{last_component(rest)}"
    on_hub = "\\" not in dataset and dataset.count("/") <= 1 and dataset[:1] not in "/~."
    return dataset if on_hub else f"local:{last_component(dataset)}"


def last_component(path: str) -> str:
    """The last component of a path with slashes or backslashes.

    >>> last_component("/home/someone/place/"), last_component("C:\\\\data\\\\place")
    ('place', 'place')
    """
    parts = [p for p in path.replace("\\", "/").split("/") if p]
    return parts[-1] if parts else path


def without_folders(text: str) -> str:
    """The same text, with absolute paths shortened to their last component.

    >>> without_folders("ended with -9; see /home/someone/outputs/x/worker-0.log, or lab/set")
    'ended with -9; see worker-0.log, or lab/set'
    """
    return _ABSOLUTE.sub(lambda path: last_component(path[0]), text)

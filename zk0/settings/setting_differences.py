"""Which settings of two sessions differ."""

from collections.abc import Iterator, Mapping
from typing import Any

NOT_SET = "not set"


def dotted_settings(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield nested settings as text by dotted name; lists stay whole.

    >>> list(dotted_settings({"rounds": 5, "training": {"lr": 3e-4}}))
    [('rounds', '5'), ('training.lr', '0.0003')]
    """
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from dotted_settings(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", str(value)


def setting_differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> tuple[tuple[str, str, str], ...]:
    """Return name and both values of each setting that differs, by name; tables in a list go by their name.

    >>> one, other = ({"clients": [{"name": "a", "dataset": place}], "rounds": 5} for place in ("sim:x", "sim:y"))
    >>> setting_differences(one, other)
    (('clients.a.dataset', 'sim:x', 'sim:y'),)
    """
    first, second = (dict(dotted_settings(_with_named_tables(settings))) for settings in (before, after))
    names = sorted(first.keys() | second.keys())
    rows = ((name, first.get(name, NOT_SET), second.get(name, NOT_SET)) for name in names)
    return tuple(row for row in rows if row[1] != row[2])


def _with_named_tables(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _with_named_tables(one) for key, one in value.items()}
    if isinstance(value, list) and value and all(isinstance(one, Mapping) for one in value):
        return {one.get("name", one.get("dataset", at)): _with_named_tables(one) for at, one in enumerate(value, 1)}
    return value

"""Read a session from a TOML file and overrides, and write it back.

Pydantic checks types and ranges (`zk0.settings.session`); this module names each wrong setting in one line.
"""

import tomllib
from collections.abc import Iterator, Mapping
from copy import deepcopy
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_args

import tomli_w
from pydantic import BaseModel, ValidationError

from zk0.errors import SettingsError
from zk0.settings.session import Session

_EXCLUSIVE = ("local_steps", "local_epochs")
"""Settings of `[training]` of which exactly one is set."""
_MAX_SHOWN = 300
"""Characters of a wrong value in an error."""


def faults_by_field(e: ValidationError) -> str:
    """Return all faults of a validation in one line, each after the dotted name of its field."""
    return "; ".join(f"{'.'.join(map(str, f['loc'])) or 'it'}: {f['msg']}" for f in e.errors())


def load_session(path: Path, overrides: Mapping[str, Any] | None = None, base: Path | None = None) -> Session:
    """Session from a TOML file.

    Args:
        path: the session file.
        overrides: settings by dotted name that replace those of the file.
        base: folder that relative paths among the settings are resolved against; None leaves them relative.

    Raises:
        SettingsError: the file is missing or no TOML, or a setting is unknown or invalid.
    """
    try:
        values = apply_overrides(tomllib.loads(path.read_text(encoding="utf-8")), overrides or {})
    except OSError as e:
        raise SettingsError(f"{path}: cannot be read ({e.strerror}); expected a session file in TOML") from e
    except (ValueError, RecursionError) as e:  # also numbers of thousands of digits, and tables nested too deep
        raise SettingsError(f"{path}: not TOML: {e}") from e
    session = parse_session(values, str(path))
    return session if base is None else session.with_absolute_paths(base)


def parse_session(values: Mapping[str, Any], where: str) -> Session:
    """Session from nested settings, as TOML holds them; `where` names their origin in an error.

    Raises:
        SettingsError: names each wrong setting, the value found and the value expected.
    """
    try:
        return Session.model_validate(values)
    except ValidationError as e:
        faults = [f"{'.'.join(map(str, f['loc'])) or 'session'}: {_expected(f)}" for f in e.errors()]
        raise SettingsError(f"{where}: " + "; ".join(faults)) from e


def override_session(session: Session, overrides: Mapping[str, Any], where: str) -> Session:
    """The same session with some settings replaced, by dotted name; `where` names their origin in an error.

    Raises:
        SettingsError: an override is unknown or invalid.
    """
    return parse_session(apply_overrides(_toml_values(session), overrides), where)


def apply_overrides(values: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Copy of nested settings in which those with the given dotted names are replaced.

    Of two settings that exclude each other, an override of one also removes the other.

    >>> apply_overrides({"rounds": 3}, {"training.lr": 0.1, "rounds": 5})
    {'rounds': 5, 'training': {'lr': 0.1}}
    >>> apply_overrides({"training": {"local_epochs": 1}}, {"training.local_steps": 2})
    {'training': {'local_steps': 2}}
    """
    result = deepcopy(dict(values))
    for name, other in (_EXCLUSIVE, _EXCLUSIVE[::-1]):
        training = result.get("training")
        if overrides.get(f"training.{name}") is not None and isinstance(training, dict):
            training.pop(other, None)
    for dotted, value in overrides.items():
        *parents, last = dotted.split(".")
        table = result
        for parent in parents:
            child = table.setdefault(parent, {})
            if not isinstance(child, dict):
                raise SettingsError(f"{dotted}: {parent} is a {type(child).__name__}, not a table of settings")
            table = child
        table[last] = value
    return result


def to_toml(session: Session) -> str:
    """All settings of a session as TOML, with the defaults written out; settings that are None are left out."""
    return tomli_w.dumps(_toml_values(session))


def _toml_values(session: Session) -> dict[str, Any]:
    return session.model_dump(mode="json", exclude_none=True)


def _expected(fault: Any) -> str:
    if fault["type"] == "extra_forbidden":
        similar = _similar_setting(".".join(part for part in fault["loc"] if isinstance(part, str)))
        return "unknown setting" + (f"; did you mean {similar}?" if similar else "")
    message, found = str(fault["msg"]).removeprefix("Value error, "), repr(fault["input"])
    shown = found if len(found) <= _MAX_SHOWN else f"{found[:_MAX_SHOWN]}..."
    return message if fault["type"] in ("missing", "value_error") else f"{message}, found {shown}"


def _similar_setting(name: str) -> str | None:
    """The setting or table whose dotted name is most like `name`, or a setting of this name in another table.

    None: no one is.
    """
    known = list(_setting_names(Session))
    moved = [one for one in known if one.rpartition(".")[2] == name.rpartition(".")[2]]
    tables = dict.fromkeys(one.rpartition(".")[0] for one in known if "." in one)
    return next(iter(moved or get_close_matches(name, [*known, *tables], n=1, cutoff=0.8)), None)


def _setting_names(table: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in table.model_fields.items():
        inner = _table_of(field.annotation)
        yield from [prefix + name] if inner is None else _setting_names(inner, f"{prefix}{name}.")


def _table_of(annotation: Any) -> type[BaseModel] | None:
    """The table of settings in a type such as `tuple[ClientSettings, ...]` or `PartitionSettings | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((table for part in get_args(annotation) if (table := _table_of(part))), None)

"""Writes configuration.md from the Session model: `python docs/configuration.py`; with --check, says if it is stale."""

import sys
from collections.abc import Iterator
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from zk0.session import Session

PAGE = Path(__file__).with_suffix(".md")
HEAD = """# Configuration

Every setting of a session. A session file (TOML) holds only what differs from the defaults below; on the command line
`--set NAME=VALUE` replaces one, under Prefect `overrides = {"NAME": VALUE}`. A setting that does not exist, or a value
that cannot be, is refused by name. Each session's folder holds `session.toml` with all of them written out.

Written by `python docs/configuration.py` from `zk0/session.py`.
"""
WORDS = {
    "ge": "at least {}", "gt": "above {}", "le": "at most {}", "lt": "below {}", "min_length": "{} or more",
    "max_length": "up to {} characters", "pattern": "fits `{}`",
}  # fmt: skip


def main() -> None:
    """Write the page, or compare it."""
    text = page()
    if "--check" in sys.argv:
        if not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != text:
            sys.exit(f"{PAGE} is stale: run python docs/configuration.py")
        return
    PAGE.write_text(text, encoding="utf-8")


def page() -> str:
    """The whole page."""
    tables = dict(tables_of(Session, ""))
    parts = [HEAD]
    for name, (model, rows) in tables.items():
        title = f"`[{name}]`" if name and not name.endswith("]]") else f"`{name}`" if name else "Top level"
        said = (model.__doc__ or "").strip().splitlines()[0]
        lines = ["| setting | value | default | what for |", "|---|---|---|---|", *rows]
        parts.append(f"## {title}\n\n{said}\n\n" + "\n".join(lines) + "\n")
    return "\n".join(parts)


def tables_of(model: type[BaseModel], name: str) -> Iterator[tuple[str, tuple[type[BaseModel], list[str]]]]:
    """A table for the model itself, then those inside it."""
    rows, inner = [], []
    for key, info in model.model_fields.items():
        below, many = record_in(info.annotation)
        if below is None:
            rows.append(row(key, info))
        else:
            path = f"{name.strip('[]')}.{key}".lstrip(".")
            inner.append((below, f"[[{path}]]" if many else path))
    yield name, (model, rows)
    for below, path in inner:
        yield from tables_of(below, path)


def record_in(annotation: Any) -> tuple[type[BaseModel] | None, bool]:
    """The model in a field's type, and whether there may be several."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation, False
    origin = get_origin(annotation)
    for inner in get_args(annotation):
        found, many = record_in(inner)
        if found is not None:
            return found, many or origin is tuple
    return None, False


def row(key: str, info: FieldInfo) -> str:
    """One setting."""
    value = ", ".join([kind(info.annotation), *limits_of(info)]).replace("|", "\\|")
    return f"| `{key}` | {value} | {shown(info)} | {(info.description or '').replace('|', chr(92) + '|')} |"


def limits_of(info: FieldInfo) -> Iterator[str]:
    """What pydantic checks beside the type; that a text is not empty goes without saying."""
    for metadata in info.metadata:
        for key, words in WORDS.items():
            value = getattr(metadata, key, None)
            if value is not None and (key, value) != ("min_length", 1):
                yield words.format(value)


def kind(annotation: Any) -> str:
    """A type in words."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return ", ".join([kind(inner[0]), *(limit for m in inner[1:] for limit in limits_of(m))])
    if origin in (Union, UnionType):
        return kind(next(a for a in inner if a is not NoneType)) + (", or unset" if NoneType in inner else "")
    if origin is Literal:
        return " or ".join(f'`"{choice}"`' if isinstance(choice, str) else f"`{choice}`" for choice in inner)
    if origin is tuple:
        return f"list of {plural(inner[0])}" if inner[-1] is Ellipsis else f"{len(inner)} {plural(inner[0])}"
    if origin is dict:
        return f"table of {plural(inner[1])}"
    return {int: "integer", float: "number", str: "text", bool: "`true` or `false`"}[annotation]


def plural(annotation: Any) -> str:
    """Several of a type in words."""
    return {int: "integers", float: "numbers", str: "texts"}.get(annotation) or kind(annotation)


def shown(info: FieldInfo) -> str:
    """The default as TOML has it."""
    if info.is_required():
        return "*must be given*"
    value = info.get_default(call_default_factory=True)
    if value is None:
        return "unset"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, str):
        return f'`"{value}"`'
    if isinstance(value, tuple):
        return f"`[{', '.join(str(v) if not isinstance(v, str) else chr(34) + v + chr(34) for v in value)}]`"
    return f"`{value}`"


if __name__ == "__main__":
    main()

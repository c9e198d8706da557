"""Write configuration.md from the settings models: `python docs/configuration.py`; with --check, fail if it is stale.

Each table of settings becomes a section with one row per setting: type and limits, default, description.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from zk0.settings.node_limits import NodeLimits
from zk0.settings.session import Session

PAGE = Path(__file__).with_suffix(".md")
INTRODUCTION = """# Configuration

All settings of a session. A session file (TOML) only needs the settings that differ from the defaults below. On the
command line, `--set NAME=VALUE` replaces a setting; a Prefect run takes `overrides = {"NAME": VALUE}`. A setting that
does not exist, or an invalid value, is an error that names the setting. The folder of each session holds a
`session.toml` with all settings written out.

Generated from `zk0/settings/` by `python docs/configuration.py`.
"""
NODE_LIMITS = """## Limits of a node

What a node lets a server ask ([To run a node](node.md#what-a-server-may-ask)): `limits.toml`, given to
`zk0bot client start --limits FILE`. These are no settings of a session.

"""
LIMITS = {
    "ge": "at least {}", "gt": "above {}", "le": "at most {}", "lt": "below {}", "min_length": "{} or more",
    "max_length": "up to {} characters", "pattern": "matches `{}`",
}  # fmt: skip
"""Attribute of a pydantic constraint -> its description."""


def main() -> None:
    """Write the page, or compare it with the settings."""
    text = page()
    if "--check" in sys.argv:
        if not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != text:
            sys.exit(f"{PAGE} is stale: run python docs/configuration.py")
        return
    PAGE.write_text(text, encoding="utf-8")


def page() -> str:
    """Content of the page in Markdown."""
    parts = [INTRODUCTION]
    for name, model, rows in tables(Session, ""):
        title = f"`[{name}]`" if name and not name.endswith("]]") else f"`{name}`" if name else "Top level"
        summary = (model.__doc__ or "").strip().splitlines()[0]
        lines = ["| setting | value | default | description |", "|---|---|---|---|", *rows]
        parts.append(f"## {title}\n\n{summary}\n\n" + "\n".join(lines) + "\n")
    rows = [table_row(key, field) for key, field in NodeLimits.model_fields.items()]
    lines = ["| limit | value | default | description |", "|---|---|---|---|", *rows]
    parts.append(NODE_LIMITS + "\n".join(lines) + "\n")
    return "\n".join(parts)


def tables(model: type[BaseModel], name: str) -> Iterator[tuple[str, type[BaseModel], list[str]]]:
    """Name, model and rows of the table of a model, then of the tables inside it."""
    rows, nested = [], []
    for key, field in model.model_fields.items():
        inner, is_list = nested_model(field.annotation)
        if inner is None:
            rows.append(table_row(key, field))
        else:
            path = f"{name.strip('[]')}.{key}".lstrip(".")
            nested.append((inner, f"[[{path}]]" if is_list else path))
    yield name, model, rows
    for inner, path in nested:
        yield from tables(inner, path)


def nested_model(annotation: Any) -> tuple[type[BaseModel] | None, bool]:
    """The model in a field's type, if any, and whether the field holds a list of them."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation, False
    origin = get_origin(annotation)
    for inner in get_args(annotation):
        model, is_list = nested_model(inner)
        if model is not None:
            return model, is_list or origin is tuple
    return None, False


def table_row(key: str, field: FieldInfo) -> str:
    """Markdown row of one setting."""
    value = ", ".join([type_text(field.annotation), *limits(field)]).replace("|", "\\|")
    return f"| `{key}` | {value} | {default_text(field)} | {(field.description or '').replace('|', chr(92) + '|')} |"


def limits(field: FieldInfo) -> Iterator[str]:
    """The constraints that pydantic checks, apart from the one that a text is not empty."""
    for metadata in field.metadata:
        for key, words in LIMITS.items():
            value = getattr(metadata, key, None)
            if value is not None and (key, value) != ("min_length", 1):
                yield words.format(value)


def type_text(annotation: Any) -> str:
    """A type in words."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if origin is Annotated and get_origin(inner[0]) is tuple:
        return type_text(inner[0])
    if origin is Annotated:
        return ", ".join([type_text(inner[0]), *(limit for m in inner[1:] for limit in limits(m))])
    if origin in (Union, UnionType):
        kinds = " or ".join(type_text(a) for a in inner if a is not NoneType)
        return kinds + (", or unset" if NoneType in inner else "")
    if origin is Literal:
        return " or ".join(
            f'`"{choice}"`' if isinstance(choice, str) else f"`{str(choice).lower()}`" for choice in inner
        )
    if origin is tuple:
        return f"list of {plural(inner[0])}" if inner[-1] is Ellipsis else f"{len(inner)} {plural(inner[0])}"
    if origin is dict:
        return f"table of {plural(inner[1])}"
    return {int: "integer", float: "number", str: "text", bool: "`true` or `false`"}[annotation]


def plural(annotation: Any) -> str:
    """Several values of a type in words."""
    return {int: "integers", float: "numbers", str: "texts"}.get(annotation) or type_text(annotation)


def default_text(field: FieldInfo) -> str:
    """The default as TOML writes it."""
    if field.is_required():
        return "*required*"
    value = field.get_default(call_default_factory=True)
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

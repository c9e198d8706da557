"""Arrow column types: extension types unwrapped, the innermost type of nested lists, LeRobot's dtype names."""

from typing import Any

import pyarrow as pa

ARROW_TYPES = {
    "float32": "float",
    "float64": "double",
    "int64": "int64",
    "int32": "int32",
    "bool": "bool",
    "string": "string",
}
"""LeRobot dtype in meta/info.json -> name of the Arrow type that stores it."""


def unwrap_extension(column: Any) -> Any:
    """Return the storage of an extension-typed column (other libraries register such types); else the column itself."""
    if isinstance(column.type, pa.BaseExtensionType):
        return pa.chunked_array([c.storage for c in column.chunks], type=column.type.storage_type)
    return column


def is_list(kind: Any) -> bool:
    """Return whether values of this type are lists."""
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def innermost_type(kind: Any) -> Any:
    """Return the type of the values inside nested lists.

    >>> str(innermost_type(pa.list_(pa.list_(pa.float32()), 3)))
    'float'
    """
    if isinstance(kind, pa.BaseExtensionType):
        return innermost_type(kind.storage_type)
    return innermost_type(kind.value_type) if is_list(kind) else kind


def with_innermost_type(kind: Any, value: Any) -> Any:
    """Return the same nested list type with another type of values inside.

    >>> str(with_innermost_type(pa.list_(pa.float64(), 3), pa.float32()))
    'fixed_size_list<item: float>[3]'
    """
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(with_innermost_type(kind.value_type, value), kind.list_size)
    return pa.list_(with_innermost_type(kind.value_type, value)) if is_list(kind) else value

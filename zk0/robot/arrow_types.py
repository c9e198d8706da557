"""Arrow types of columns: what is stored at the bottom of nested lists."""

from typing import Any

import pyarrow as pa


def plain(column: Any) -> Any:
    """A column without the wrapping types that other libraries may have registered with arrow."""
    if isinstance(column.type, pa.BaseExtensionType):
        return pa.chunked_array([c.storage for c in column.chunks], type=column.type.storage_type)
    return column


def is_list(kind: Any) -> bool:
    """Whether values of this type are lists."""
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def leaf(kind: Any) -> Any:
    """The type at the bottom of nested lists.

    >>> str(leaf(pa.list_(pa.list_(pa.float32()), 3)))
    'float'
    """
    if isinstance(kind, pa.BaseExtensionType):
        return leaf(kind.storage_type)
    return leaf(kind.value_type) if is_list(kind) else kind


def with_leaf(kind: Any, value: Any) -> Any:
    """The same nested lists over another type.

    >>> str(with_leaf(pa.list_(pa.float64(), 3), pa.float32()))
    'fixed_size_list<item: float>[3]'
    """
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(with_leaf(kind.value_type, value), kind.list_size)
    return pa.list_(with_leaf(kind.value_type, value)) if is_list(kind) else value

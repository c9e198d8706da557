"""What tensors are without their values, and how the head of a safetensors file says it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np
from numpy.typing import NDArray

from zk0.errors import CheckpointError

CODES = {
    **{f"float{bits}": f"F{bits}" for bits in (16, 32, 64)},
    **{f"int{bits}": f"I{bits}" for bits in (8, 16, 32, 64)},
    **{f"uint{bits}": f"U{bits}" for bits in (8, 16, 32, 64)},
    "bool": "BOOL",
}
"""numpy's names of dtypes, and what safetensors calls them."""
_DTYPES = {code: name for name, code in CODES.items()}
_RESERVED = "__metadata__"


@dataclass(frozen=True)
class TensorSpec:
    """What a tensor is without its values; `dtype` is numpy's name, such as float32."""

    dtype: str
    shape: tuple[int, ...]

    @classmethod
    def of(cls, tensor: NDArray[Any]) -> Self:
        """The spec of an array in memory."""
        return cls(tensor.dtype.name, tensor.shape)

    @property
    def size(self) -> int:
        """Number of values."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of all values."""
        return self.size * np.dtype(self.dtype).itemsize


def not_float32(specs: Mapping[str, TensorSpec]) -> str | None:
    """Which tensor comes first that is not float32, and what it is; None: all are.

    >>> not_float32({"v": TensorSpec("float32", ()), "w": TensorSpec("int8", (2,))})
    'tensor w is int8'
    """
    return next((f"tensor {n} is {specs[n].dtype}" for n in sorted(specs) if specs[n].dtype != "float32"), None)


def title(name: str, spec: TensorSpec) -> bytes:
    """What stands before a tensor's values in a digest: the JSON array `["name","dtype",[dimension,...]]` in a line."""
    return json.dumps([name, spec.dtype, list(spec.shape)], ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


def file_order(specs: Mapping[str, TensorSpec]) -> tuple[str, ...]:
    """Names in the order in which safetensors writes them: wide dtypes first, so that every value is aligned."""
    return tuple(sorted(specs, key=lambda name: (-np.dtype(specs[name].dtype).itemsize, name)))


def write_head(names: Sequence[str], specs: Mapping[str, TensorSpec]) -> bytes:
    """The head of a safetensors file whose tensors lie in the order of `names`.

    Raises:
        CheckpointError: a name that safetensors keeps for itself.
    """
    entries, end = {}, 0
    for name in names:
        if name == _RESERVED:
            raise CheckpointError(f"a tensor cannot be named {_RESERVED}: safetensors keeps that name for itself")
        start, end = end, end + specs[name].nbytes
        entries[name] = {
            "dtype": CODES[specs[name].dtype],
            "shape": list(specs[name].shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def read_head(path: Path, handle: BinaryIO) -> tuple[dict[str, TensorSpec], dict[str, int]]:
    """Specs in the order in which the tensors lie, and at which byte each begins.

    Raises:
        CheckpointError: a dtype that numpy does not have.
    """
    length = int.from_bytes(handle.read(8), "little")
    entries = json.loads(handle.read(length))
    specs, offsets = {}, {}
    for name, entry in sorted(
        ((n, e) for n, e in entries.items() if n != _RESERVED), key=lambda item: item[1]["data_offsets"]
    ):
        if entry["dtype"] not in _DTYPES:
            raise CheckpointError(f"{path}: tensor {name} is {entry['dtype']}, expected one of {', '.join(_DTYPES)}")
        specs[name] = TensorSpec(_DTYPES[entry["dtype"]], tuple(entry["shape"]))
        offsets[name] = 8 + length + entry["data_offsets"][0]
    return specs, offsets

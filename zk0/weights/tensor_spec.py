"""Name, dtype and shape of tensors, and the header of a safetensors file that lists them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np
from numpy.typing import NDArray

from zk0.errors import CheckpointError

SAFETENSORS_DTYPES = {
    **{f"float{bits}": f"F{bits}" for bits in (16, 32, 64)},
    **{f"int{bits}": f"I{bits}" for bits in (8, 16, 32, 64)},
    **{f"uint{bits}": f"U{bits}" for bits in (8, 16, 32, 64)},
    "bool": "BOOL",
}
"""The names of dtypes in safetensors, by their names in numpy."""
_DTYPES = {code: name for name, code in SAFETENSORS_DTYPES.items()}
_RESERVED = "__metadata__"


@dataclass(frozen=True)
class TensorSpec:
    """Dtype and shape of a tensor; `dtype` is numpy's name, such as float32."""

    dtype: str
    shape: tuple[int, ...]

    @classmethod
    def of(cls, tensor: NDArray[Any]) -> Self:
        """Return the spec of an array."""
        return cls(tensor.dtype.name, tensor.shape)

    @property
    def size(self) -> int:
        """The number of values."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """The bytes of all values."""
        return self.size * np.dtype(self.dtype).itemsize


def first_not_float32(specs: Mapping[str, TensorSpec]) -> str | None:
    """Describe the first tensor, by name, that is not float32; None if all are.

    >>> first_not_float32({"v": TensorSpec("float32", ()), "w": TensorSpec("int8", (2,))})
    'tensor w is int8'
    """
    return next((f"tensor {n} is {specs[n].dtype}" for n in sorted(specs) if specs[n].dtype != "float32"), None)


def digest_header(name: str, spec: TensorSpec) -> bytes:
    """Return what precedes a tensor's values in a digest: the JSON array `["name","dtype",[dimension,...]]` and LF."""
    return json.dumps([name, spec.dtype, list(spec.shape)], ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


def file_order(specs: Mapping[str, TensorSpec]) -> tuple[str, ...]:
    """Return the names in the order in which safetensors stores them: wide dtypes first, so that values are aligned."""
    return tuple(sorted(specs, key=lambda name: (-np.dtype(specs[name].dtype).itemsize, name)))


def encode_header(names: Sequence[str], specs: Mapping[str, TensorSpec]) -> bytes:
    """Return the header of a safetensors file that stores the tensors in the order of `names`.

    Raises:
        CheckpointError: a name that safetensors reserves.
    """
    entries, end = {}, 0
    for name in names:
        if name == _RESERVED:
            raise CheckpointError(f"a tensor cannot be named {_RESERVED}: safetensors reserves the name")
        start, end = end, end + specs[name].nbytes
        entries[name] = {
            "dtype": SAFETENSORS_DTYPES[specs[name].dtype],
            "shape": list(specs[name].shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def header_bytes(specs: Mapping[str, TensorSpec]) -> int:
    """Return the size of the header of a file with these tensors."""
    return len(encode_header(file_order(specs), specs))


def file_bytes(specs: Mapping[str, TensorSpec]) -> int:
    """Return the size of a file with these tensors."""
    return header_bytes(specs) + sum(spec.nbytes for spec in specs.values())


def read_header(path: Path, handle: BinaryIO) -> tuple[dict[str, TensorSpec], dict[str, int]]:
    """Read the header of a safetensors file.

    Returns the specs in the order in which the tensors are stored, and the byte at which each one starts.

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


def checked_spec(name: str, tensor: NDArray[Any]) -> TensorSpec:
    """Return the spec of an array after checking that a file can hold it.

    Raises:
        CheckpointError: safetensors does not have its dtype.
    """
    spec = TensorSpec.of(tensor)
    if spec.dtype not in SAFETENSORS_DTYPES:
        raise CheckpointError(f"tensor {name} is {spec.dtype}, expected one of {', '.join(SAFETENSORS_DTYPES)}")
    return spec


def little_endian_bytes(tensor: NDArray[Any]) -> memoryview:
    """Return the values in C order and little-endian, without a copy where the array is stored that way."""
    little = np.ascontiguousarray(tensor, dtype=tensor.dtype.newbyteorder("<"))
    return memoryview(little.reshape(-1).view(np.uint8))

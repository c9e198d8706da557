"""LoRA factors (arXiv 2106.09685): which matrices they change, and the dense weights that they stand for.

A client that trains with LoRA sends two factors for each matrix that it changes, A (rank, in) and B (out, rank),
instead of the matrix. Factors are initialized anew every round, B with zeros, on top of the global weights, so an
update stands for `W + alpha / rank * B A`. The server averages these products, never the factors: the mean of B A is
not the product of the means. The new global weights are dense again, and every checkpoint is a plain policy.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zk0.errors import UpdateError
from zk0.records import LoraShape
from zk0.weights.files import WeightsFile, WeightsSource
from zk0.weights.tensor_spec import TensorSpec

LORA_TARGETS = re.compile(
    r"(?:^|\.)lm_expert\.layers\.\d+\.(?:self_attn\.[qkvo]_proj|mlp\.(?:gate|up|down)_proj)\.weight$"
)
"""Attention and MLP of the action expert. Anchored by `lm_expert`: the language model has the same suffixes."""


def lora_targets(names: Iterable[str]) -> tuple[str, ...]:
    """Return the names of the matrices that have LoRA factors, in ascending order.

    >>> lora_targets(["model.lm_expert.layers.0.self_attn.q_proj.weight", "model.vlm.layers.0.self_attn.q_proj.weight"])
    ('model.lm_expert.layers.0.self_attn.q_proj.weight',)
    """
    return tuple(sorted(name for name in names if LORA_TARGETS.search(name)))


def lora_factor_names(target: str) -> tuple[str, str]:
    """Return the names of the factors A and B of a matrix, as peft writes them to its files.

    >>> lora_factor_names("model.q_proj.weight")
    ('model.q_proj.lora_A.weight', 'model.q_proj.lora_B.weight')
    """
    module = target.removesuffix(".weight")
    return f"{module}.lora_A.weight", f"{module}.lora_B.weight"


def lora_factor_specs(specs: Mapping[str, TensorSpec], rank: int) -> dict[str, TensorSpec]:
    """Return the tensors that a client with LoRA sends, for global weights with these specs."""
    found: dict[str, TensorSpec] = {}
    for target in lora_targets(specs):
        (out_features, in_features), dtype = specs[target].shape, specs[target].dtype
        a, b = lora_factor_names(target)
        found[a] = TensorSpec(dtype, (rank, in_features))
        found[b] = TensorSpec(dtype, (out_features, rank))
    return found


class MergedWeights:
    """Source of the dense weights that one client's LoRA factors stand for.

    Both files must stay open. Memory is the factors of one matrix and a few of its rows.

    Args:
        global_weights: `specs` are theirs.
        lora_factors: an open file of factors.
        lora_shape: rank and alpha.

    Raises:
        UpdateError: the file does not hold the factors of the global weights' matrices.
    """

    def __init__(self, global_weights: WeightsSource, lora_factors: WeightsFile, lora_shape: LoraShape) -> None:
        _check_factors(lora_factors, lora_factor_specs(global_weights.specs, lora_shape.rank))
        self.specs = global_weights.specs
        self._global_weights, self._factors = global_weights, lora_factors
        self._scale = lora_shape.alpha / lora_shape.rank
        self._targets = frozenset(lora_targets(global_weights.specs))
        self._loaded: tuple[str, NDArray[np.float64], NDArray[np.float64]] | None = None

    def read(self, name: str, start: int, out: NDArray[Any]) -> None:
        """Fill `out` (one dimension) with values `start`, `start + 1`, ... of W + alpha / rank * B A, row by row.

        The sum is float64 and rounded once, to the dtype of `out`.
        """
        values = np.empty(out.size, self.specs[name].dtype)
        self._global_weights.read(name, start, values)
        if name not in self._targets:
            out[:] = values
            return
        a, b = self._load_factors(name)
        width = a.shape[1]
        first, last = start // width, -(-(start + out.size) // width)
        delta = (b[first:last] @ a).reshape(-1)[start - first * width :][: out.size]
        delta += values
        out[:] = delta

    def _load_factors(self, name: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return A and alpha / rank * B."""
        loaded = self._loaded
        if loaded is None or loaded[0] != name:
            a, b = (self._factors[factor].astype(np.float64) for factor in lora_factor_names(name))
            b *= self._scale
            self._loaded = loaded = name, a, b  # one assignment: several threads may read blocks
        return loaded[1], loaded[2]


def _check_factors(lora_factors: WeightsFile, expected: Mapping[str, TensorSpec]) -> None:
    found = lora_factors.specs
    if found == expected and expected:
        return
    names = sorted(n for n in found.keys() | expected.keys() if found.get(n) != expected.get(n))
    name = names[0] if names else "none"
    raise UpdateError(
        f"{len(names)} tensors are not the expected LoRA factors; first {name}: found "
        f"{found.get(name, 'nothing')}, expected {expected.get(name, 'nothing')}"
    )

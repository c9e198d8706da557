"""Low-rank adapters (LoRA, arXiv 2106.09685): which weights they change, and what they make of them.

A client that trains adapters sends two factors for each matrix that it changes, A (rank, in) and B (out, rank), instead
of the matrix. They start anew every round, B at zero, on top of the global weights, so what a client sends stands for
`W + alpha / rank * B A`. The server averages those products, never the factors: the mean of B A is not the product of
the means. The new global weights are whole again, and every checkpoint is a plain policy.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zk0.errors import UpdateError
from zk0.records import Adapters
from zk0.tensor_spec import TensorSpec
from zk0.weights import Source, WeightsFile

LORA_TARGETS = re.compile(
    r"(?:^|\.)lm_expert\.layers\.\d+\.(?:self_attn\.[qkvo]_proj|mlp\.(?:gate|up|down)_proj)\.weight$"
)
"""Attention and MLP of the action expert. Anchored by `lm_expert`: the language model has the same suffixes."""


def lora_targets(names: Iterable[str]) -> tuple[str, ...]:
    """The matrices that adapters change, in ascending order.

    >>> lora_targets(["model.lm_expert.layers.0.self_attn.q_proj.weight", "model.vlm.layers.0.self_attn.q_proj.weight"])
    ('model.lm_expert.layers.0.self_attn.q_proj.weight',)
    """
    return tuple(sorted(name for name in names if LORA_TARGETS.search(name)))


def factor_names(target: str) -> tuple[str, str]:
    """What the factors A and B of a matrix are called, as peft names them in its files.

    >>> factor_names("model.q_proj.weight")
    ('model.q_proj.lora_A.weight', 'model.q_proj.lora_B.weight')
    """
    module = target.removesuffix(".weight")
    return f"{module}.lora_A.weight", f"{module}.lora_B.weight"


def factor_specs(specs: Mapping[str, TensorSpec], rank: int) -> dict[str, TensorSpec]:
    """The tensors that a client with adapters sends back when it was sent those of `specs`."""
    found: dict[str, TensorSpec] = {}
    for target in lora_targets(specs):
        (out_features, in_features), dtype = specs[target].shape, specs[target].dtype
        a, b = factor_names(target)
        found[a] = TensorSpec(dtype, (rank, in_features))
        found[b] = TensorSpec(dtype, (out_features, rank))
    return found


class MergedWeights:
    """The dense weights that one client's factors stand for, read a block at a time; `specs` are those of `anchor`.

    Both files stay open as long as this is read from. Memory is the factors of one matrix and a few of its rows.

    Raises:
        UpdateError: the file does not hold the factors of the anchor's matrices.
    """

    def __init__(self, anchor: Source, factors: WeightsFile, adapters: Adapters) -> None:
        _check_factors(factors, factor_specs(anchor.specs, adapters.rank))
        self.specs = anchor.specs
        self._anchor, self._factors = anchor, factors
        self._scale = adapters.alpha / adapters.rank
        self._targets = frozenset(lora_targets(anchor.specs))
        self._loaded: tuple[str, NDArray[np.float64], NDArray[np.float64]] | None = None

    def read(self, name: str, start: int, out: NDArray[Any]) -> None:
        """Fill `out` (one dimension) with values `start`, `start + 1`, ... of W + alpha / rank * B A, row by row.

        The sum is float64 and rounded once, to the dtype of `out`.
        """
        values = np.empty(out.size, self.specs[name].dtype)
        self._anchor.read(name, start, values)
        if name not in self._targets:
            out[:] = values
            return
        a, b = self._pair(name)
        width = a.shape[1]
        first, last = start // width, -(-(start + out.size) // width)
        delta = (b[first:last] @ a).reshape(-1)[start - first * width :][: out.size]
        delta += values
        out[:] = delta

    def _pair(self, name: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        loaded = self._loaded
        if loaded is None or loaded[0] != name:
            a, b = (self._factors[factor].astype(np.float64) for factor in factor_names(name))
            b *= self._scale
            self._loaded = loaded = name, a, b  # in one go: blocks may be read from several threads
        return loaded[1], loaded[2]


def _check_factors(factors: WeightsFile, expected: Mapping[str, TensorSpec]) -> None:
    if factors.specs == expected and expected:
        return
    names = sorted(n for n in factors.specs.keys() | expected.keys() if factors.specs.get(n) != expected.get(n))
    name = names[0] if names else "none"
    raise UpdateError(
        f"{len(names)} tensors are not the factors that were asked for; first {name}: found "
        f"{factors.specs.get(name, 'nothing')}, expected {expected.get(name, 'nothing')}"
    )

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
from zk0.session import TrainingSettings
from zk0.weights import TensorSpec, WeightsFile

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


def update_specs(specs: Mapping[str, TensorSpec], training: TrainingSettings) -> dict[str, TensorSpec]:
    """The tensors that a client sends back when it was sent those of `specs`: the same ones, or factors.

    Raises:
        UpdateError: adapters are asked for, and there is nothing that they could change.
    """
    if training.adapter == "none":
        return dict(specs)
    found: dict[str, TensorSpec] = {}
    for target in lora_targets(specs):
        (out_features, in_features), dtype = specs[target].shape, specs[target].dtype
        a, b = factor_names(target)
        found[a] = TensorSpec(dtype, (training.lora_rank, in_features))
        found[b] = TensorSpec(dtype, (out_features, training.lora_rank))
    if not found:
        raise UpdateError(
            f'training.adapter "lora": none of {len(specs)} trained tensors is a matrix of an action expert'
        )
    return found


class MergedWeights:
    """The dense weights that one client's factors stand for, read a block at a time; `specs` are those of `anchor`.

    Both files stay open as long as this is read from. Memory is the factors of one matrix and a few of its rows.
    """

    def __init__(self, anchor: WeightsFile, factors: WeightsFile, training: TrainingSettings) -> None:
        self.specs = anchor.specs
        self._anchor, self._factors = anchor, factors
        self._scale = training.lora_alpha / training.lora_rank
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
        if self._loaded is None or self._loaded[0] != name:
            a, b = (self._factors[factor].astype(np.float64) for factor in factor_names(name))
            b *= self._scale
            self._loaded = name, a, b
        return self._loaded[1], self._loaded[2]

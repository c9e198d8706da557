"""The mean of the clients' weights: exact, the same bits for any order of arrival, and small in memory."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from math import isfinite, sqrt
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zk0.errors import CheckpointError, UpdateError
from zk0.records import Contribution, Record, Refusal, Update
from zk0.weights import Source, TensorSpec, WeightsWriter, digest, open_weights, writing
from zk0.wire import open_update

_BLOCK = 1 << 16
"""Values taken at a time: three float64 blocks of this size stay in a core's cache (1.5 MiB)."""


class Aggregate(Record):
    """The new global weights, and how each client's update stands to their step."""

    path: str
    digest: str
    bytes: int
    param_update_norm: float
    """||w_k - w_(k-1)||, L2 over all tensors."""
    contributions: tuple[Contribution, ...]
    """In the order of client names."""


def verify_update(
    update: Update, *, round: int, global_digest: str, global_path: Path, seen: Collection[str]
) -> Refusal | None:
    """Why this update must not be averaged, or None if it is good. Reads the file twice, a tensor at a time.

    `global_path` is the file of the global weights, `seen` the clients of this round whose updates were taken already.
    """
    reason = _fault_of_record(update, round, global_digest, seen)
    if reason is None:
        try:
            reason = _fault_of_bytes(update)
            with open_weights(global_path) as anchor, open_update(update, anchor) as source:
                reason = reason or _fault_of_values(source, anchor.specs)
        except (CheckpointError, UpdateError) as e:
            reason = str(e)
    return None if reason is None else Refusal(client=update.client, reason=reason)


def aggregate(updates: Sequence[Update], global_path: Path, target_path: Path) -> Aggregate:
    """The clients' weights averaged by examples (FedAvg, arXiv 1602.05629, algorithm 1), written to `target_path`.

    Sums are float64 in the order of client names, so arrival order does not change a bit; the mean is rounded once,
    to the dtype of the global weights. `n * w` is exact in float64 for float32 weights and n < 2^29: where all
    clients agree on a value (or there is only one), the mean is that very value. Memory is a few blocks, whatever
    the number of clients or the size of the model. Updates must have passed `verify_update`.

    Raises:
        UpdateError: no update, a client twice, tensors that are not those of the global weights, or not finite.
        CheckpointError: a file that cannot be read. Nothing is left at `target_path` then.
    """
    updates = sorted(updates, key=lambda update: update.client)
    clients = [update.client for update in updates]
    if not updates or len(set(clients)) < len(clients):
        raise UpdateError(f"clients {clients} cannot be averaged: expected at least one, each once")
    with ExitStack() as stack:
        anchor = stack.enter_context(open_weights(global_path))
        sources = [stack.enter_context(open_update(update, anchor)) for update in updates]
        for update, source in zip(updates, sources, strict=True):
            if fault := _fault_of_specs(source.specs, anchor.specs):
                raise UpdateError(f"{update.client}: {fault}")
        writer = stack.enter_context(writing(target_path, anchor.specs))
        step = _Step(anchor, sources, [update.examples for update in updates])
        with np.errstate(invalid="ignore", over="ignore"):  # told as an error by `contribution`
            for name in writer.names:
                step.fold(name, writer)
        contributions = tuple(step.contribution(i, client) for i, client in enumerate(clients))
    return Aggregate(
        path=str(target_path),
        digest=writer.digest,
        bytes=writer.bytes,
        param_update_norm=sqrt(step.square),
        contributions=contributions,
    )


class _Step:
    """From w_(k-1) to w_k: the mean of one block after the other, with the sums that norms and cosines need."""

    def __init__(self, anchor: Source, sources: Sequence[Source], examples: Sequence[int]):
        self._anchor, self._sources, self._examples = anchor, sources, examples
        self.square = 0.0
        self._squares = [0.0] * len(sources)
        self._products = [0.0] * len(sources)

    def fold(self, name: str, writer: WeightsWriter) -> None:
        """Write the mean of one tensor, and take it into the sums."""
        spec = self._anchor.specs[name]
        buffers = np.empty(min(_BLOCK, spec.size), spec.dtype), np.empty((2, min(_BLOCK, spec.size)))
        for start in range(0, spec.size, _BLOCK):
            length = min(_BLOCK, spec.size - start)
            read, (mean, other) = buffers[0][:length], buffers[1][:, :length]
            self._mean(name, start, read, mean, other)
            new = mean.astype(spec.dtype)
            writer.write(new)
            self._measure(name, start, read, new, mean, other)

    def _mean(self, name: str, start: int, read: NDArray[Any], mean: NDArray[Any], other: NDArray[Any]) -> None:
        for i, (source, count) in enumerate(zip(self._sources, self._examples, strict=True)):
            source.read(name, start, read)
            if i == 0:  # stored, not added to zero: 0.0 + -0.0 would lose the sign
                np.multiply(read, float(count), out=mean, dtype=np.float64)
            else:
                mean += np.multiply(read, float(count), out=other, dtype=np.float64)
        mean /= float(sum(self._examples))

    def _measure(
        self, name: str, start: int, read: NDArray[Any], new: NDArray[Any], mean: NDArray[Any], other: NDArray[Any]
    ) -> None:
        old, delta = mean, new.astype(np.float64)  # mean's buffer is free now
        self._anchor.read(name, start, read)
        old[:] = read
        delta -= old
        self.square += float(delta @ delta)
        for i, source in enumerate(self._sources):
            source.read(name, start, read)  # still in the page cache
            np.subtract(read, old, out=other)
            self._squares[i] += float(other @ other)
            self._products[i] += float(other @ delta)

    def contribution(self, index: int, client: str) -> Contribution:
        """How one client's step stands to the mean step."""
        square = self._squares[index]
        if not (isfinite(square) and isfinite(self.square)):
            raise UpdateError(f"{client}: the step has no finite length: NaN, inf or values beyond float64's range")
        lengths = sqrt(square) * sqrt(self.square)
        return Contribution(
            client=client,
            weight=self._examples[index] / sum(self._examples),
            update_norm=sqrt(square),
            cosine_to_mean=max(-1.0, min(1.0, self._products[index] / lengths)) if lengths else None,
        )


def _fault_of_record(update: Update, round: int, global_digest: str, seen: Collection[str]) -> str | None:
    if update.round != round:
        return f"is of round {update.round}, expected round {round}"
    if update.global_digest != global_digest:
        return f"was trained from weights {update.global_digest[:12]}, expected {global_digest[:12]}"
    if update.client in seen:
        return f"a second update of {update.client} in round {round}; the first is kept"
    return None


def _fault_of_bytes(update: Update) -> str | None:
    with open_weights(Path(update.path)) as file:
        found = digest(file)
    return None if found == update.digest else f"{update.path}: digest {found[:12]}, expected {update.digest[:12]}"


def _fault_of_values(source: Source, specs: Mapping[str, TensorSpec]) -> str | None:
    if fault := _fault_of_specs(source.specs, specs):
        return fault
    for name in source.specs:
        for block in _blocks(source, name):
            if not (good := np.isfinite(block)).all():
                return f"tensor {name} holds {block[~good][0]}, expected finite numbers"
    return None


def _fault_of_specs(found: Mapping[str, TensorSpec], expected: Mapping[str, TensorSpec]) -> str | None:
    if missing := sorted(expected.keys() - found.keys()):
        return f"tensors are missing: {_some(missing)}"
    if extra := sorted(found.keys() - expected.keys()):
        return f"tensors that the global weights do not have: {_some(extra)}"
    for name, spec in expected.items():
        if not np.issubdtype(np.dtype(spec.dtype), np.floating):
            return f"tensor {name} is {spec.dtype} in the global weights; only floating point can be averaged"
        if found[name].shape != spec.shape:
            return f"tensor {name} has shape {found[name].shape}, expected {spec.shape}"
        if found[name].dtype != spec.dtype:
            return f"tensor {name} is {found[name].dtype}, expected {spec.dtype}"
    return None


def _blocks(source: Source, name: str) -> Iterator[NDArray[Any]]:
    spec = source.specs[name]
    buffer = np.empty(min(_BLOCK, spec.size), spec.dtype)
    for start in range(0, spec.size, _BLOCK):
        block = buffer[: spec.size - start]
        source.read(name, start, block)
        yield block


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")

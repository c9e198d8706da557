"""Brings batches of frames to the device that trains, so that neither the CPU nor a GPU waits for the other.

A thread assembles the next batch in page-locked memory and copies it on a stream of its own, while the GPU works on the
batch before. On a CPU there is nothing to copy: batches are assembled when they are needed. The thread reads mapped
files of features and shares the process's memory; the workers of torch's DataLoader would each be a process.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class CopyPlan:
    """How batches reach the device that trains, and how results come back."""

    device: str
    pinned: bool
    """Batches are assembled in page-locked memory, from which a GPU copies while the CPU goes on."""
    batches_ahead: int
    """Batches that are brought to the device while the one before is trained."""
    steps_unread: int
    """Optimizer steps after which the CPU waits for the loss of the first of them; 0: it reads each loss at once."""

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """Host memory to assemble a part of a batch in; torch keeps page-locked memory and gives it out again."""
        return torch.empty(shape, dtype=dtype, pin_memory=self.pinned)

    def to_device(self, host: Tensor) -> Tensor:
        """The tensor on the device; with page-locked memory the copy is only started. On a CPU the tensor itself."""
        if self.pinned and not host.is_pinned():
            host = host.pin_memory()
        return host.to(self.device, non_blocking=True)


def copy_plan(device: str) -> CopyPlan:
    """The plan for a device: everything at once on a CPU; on a GPU a batch ahead, and losses are read two steps later.

    >>> copy_plan("cpu")
    CopyPlan(device='cpu', pinned=False, batches_ahead=0, steps_unread=0)
    >>> copy_plan("cuda")
    CopyPlan(device='cuda', pinned=True, batches_ahead=1, steps_unread=2)
    """
    on_gpu = torch.device(device).type == "cuda"
    return CopyPlan(device, pinned=on_gpu, batches_ahead=int(on_gpu), steps_unread=2 if on_gpu else 0)


class DeviceStream:
    """Copies of a thread to a GPU, on a stream beside that of the computation; on other devices nothing special."""

    def __init__(self, plan: CopyPlan) -> None:
        self._stream = torch.cuda.Stream(plan.device) if plan.pinned else None  # type: ignore[no-untyped-call]

    def run(self, copy: Callable[[], Mapping[str, Any]]) -> "Staged":
        """Start the copies of a batch."""
        with nullcontext() if self._stream is None else torch.cuda.stream(self._stream):
            parts = copy()
            return Staged(parts, None if self._stream is None else self._stream.record_event())


@dataclass(frozen=True)
class Staged:
    """A batch on its way to the device."""

    parts: Mapping[str, Any]
    copied: torch.cuda.Event | None

    def ready(self) -> Mapping[str, Any]:
        """The batch: what is computed with it from now on starts after the copies; the CPU does not wait."""
        if self.copied is not None:
            stream = torch.cuda.current_stream()
            stream.wait_event(self.copied)
            for part in self.parts.values():
                if isinstance(part, Tensor) and part.is_cuda:
                    part.record_stream(stream)  # its memory was allocated for the stream of the copies
        return self.parts


def staged_ahead[A, B](items: Iterator[A], stage: Callable[[A], B], ahead: int) -> Generator[tuple[A, Callable[[], B]]]:
    """Yield each item with a function that returns (or raises) what `stage` makes of it.

    Items are drawn by the caller's thread, in order. One other thread stages them, also in order.

    Args:
        items: drawn `ahead` items before they are yielded.
        stage: called once for each item.
        ahead: items that are staged while the caller works with the one before; 0: `stage` runs in the caller's thread.
    """
    if ahead == 0:
        for item in items:
            yield item, partial(stage, item)
        return
    with ThreadPoolExecutor(1, "zk0-stage") as executor:
        waiting: deque[tuple[A, Callable[[], B]]] = deque()
        for item in items:
            waiting.append((item, executor.submit(stage, item).result))
            if len(waiting) > ahead:
                yield waiting.popleft()
        yield from waiting


class ResultOnItsWay:
    """Numbers of a step that a GPU will have computed; on a CPU they are there."""

    def __init__(self, numbers: Tensor) -> None:
        self._host = numbers.to("cpu", non_blocking=True)  # into page-locked memory
        self._arrived = torch.cuda.current_stream().record_event() if numbers.is_cuda else None

    def read(self) -> list[float]:
        """The numbers; waits until they have arrived."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return [float(number) for number in self._host.tolist()]

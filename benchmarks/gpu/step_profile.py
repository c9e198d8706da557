"""Where the time of a training step goes on the device that trains: busy by kind of work, and idle."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

PROFILED_STEPS = 3
KINDS = {
    "copies": ("memcpy", "memset", "aten::copy_"),
    "optimizer": ("adam", "multi_tensor_apply", "_foreach"),
    "matrix products": (
        "gemm",
        "cutlass",
        "nvjet",
        "xmma",
        "cublas",
        "fmha",
        "flash",
        "aten::mm",
        "aten::addmm",
        "bmm",
    ),
}
"""Kind of work -> parts of the names of its kernels, in small letters; every other kernel is of the kind `other`. The
optimizer is AdamW, clipping and, in zk0, the proximal term."""


class BusyTime(NamedTuple):
    """A kernel or a copy."""

    name: str
    start: float
    """In microseconds."""
    end: float


def kind_of(name: str) -> str:
    """The kind of work of a kernel."""
    small = name.lower()
    return next((kind for kind, parts in KINDS.items() if any(part in small for part in parts)), "other")


def busy_microseconds(work: Sequence[BusyTime]) -> float:
    """Time in which at least one kernel or copy ran."""
    total, until = 0.0, float("-inf")
    for one in sorted(work, key=lambda w: w.start):
        total += max(0.0, one.end - max(one.start, until))
        until = max(until, one.end)
    return total


def step_parts(work: Sequence[BusyTime], steps: int, step_seconds: float) -> dict[str, float]:
    """Milliseconds of a step by kind of work, and those in which the device was idle.

    Kinds that run beside each other are both counted, so their sum may exceed the busy time.

    Args:
        work: of `steps` steps.
        steps: number of steps.
        step_seconds: of a step, measured without the profiler, which slows the CPU down and not the device.
    """
    parts = dict.fromkeys((*KINDS, "other"), 0.0)
    for one in work:
        parts[kind_of(one.name)] += (one.end - one.start) / 1e3 / steps
    return parts | {"idle": max(0.0, step_seconds * 1e3 - busy_microseconds(work) / 1e3 / steps)}


class StepProfile:
    """The work of `PROFILED_STEPS` steps, recorded by torch's profiler."""

    def __init__(self, device: str) -> None:
        from torch.autograd import DeviceType
        from torch.profiler import ProfilerActivity, profile

        self._on_gpu = device.startswith("cuda")
        self._type = DeviceType.CUDA if self._on_gpu else DeviceType.CPU
        activity = ProfilerActivity.CUDA if self._on_gpu else ProfilerActivity.CPU
        self._profiler: Any = profile(activities=[activity], acc_events=True)
        self._ticks = 0
        self.work: list[BusyTime] = []

    def tick(self) -> None:
        """Begin on the first call, and end `PROFILED_STEPS` calls later; call it between steps."""
        if self._ticks == 0:
            self._profiler.start()
        elif self._ticks == PROFILED_STEPS:
            self._stop()
        self._ticks += 1

    def _stop(self) -> None:
        import torch

        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self._profiler.stop()
        found = [e for e in self._profiler.events() if e.device_type == self._type]
        if self._on_gpu:  # labels of the CPU's code span the kernels that it starts, and the time between them
            found = [e for e in found if not e.is_user_annotation]
        self.work = [one for event in found if event.cpu_parent is None for one in _named_work(event)]
        if not self.work:
            raise RuntimeError(
                f"torch's profiler recorded nothing that {self._type} worked on in {PROFILED_STEPS} steps"
            )


def _named_work(event: Any) -> Iterator[BusyTime]:
    """The outermost operations that name a kind of work, and those that call no other; a GPU's kernels call none."""
    if event.cpu_children and kind_of(event.name) == "other":
        for child in event.cpu_children:
            yield from _named_work(child)
    else:
        yield BusyTime(event.name, event.time_range.start, event.time_range.end)

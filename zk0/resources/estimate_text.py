"""What a session needs of a machine, as text: warnings with suggestions, and the rows of a table."""

from collections.abc import Iterator, Sequence

from zk0.resources.disk_text import gigabytes
from zk0.resources.session_estimate import SessionEstimate
from zk0.resources.suggestions import Resource, Shortage

_DASH = "–"
_OTHERWISE: dict[Resource, str] = {
    "memory": "use a machine with more memory, or a smaller policy",
    "disk": "free disk space, or let output_dir and cache_dir name folders on another disk",
    "folder": "raise disk_limit_gb",
    "time": "use a faster machine or one with a GPU, or a smaller policy",
    "turn": "use a faster machine or one with a GPU, or a smaller policy",
}
"""What helps where no change is enough."""
_TITLES: dict[Resource, str] = {
    "memory": "memory: about {needed}, this machine has {available} for it",
    "disk": "disk: up to {needed}, {available} are free",
    "folder": "disk: up to {needed} in the session's folder, disk_limit_gb allows {available}",
    "time": "time: about {needed}, more than {available}",
    "turn": "round: a client trains for about {needed}, federation.round_timeout_seconds allows {available}",
}


def shortage_lines(shortages: Sequence[Shortage]) -> Iterator[str]:
    """Yield a warning for each shortage, and a line for each change that helps: each counts with those before it."""
    for shortage in shortages:
        title = _TITLES[shortage.resource]
        needed, available = _amount(shortage, shortage.needed), _amount(shortage, shortage.available)
        yield "warning: " + title.format(needed=needed, available=available)
        for number, suggestion in enumerate(shortage.suggestions):
            end = ", which fits" if suggestion.fits else ""
            start = "and with" if number else "with"
            yield f"  {start} {suggestion.change}: {_amount(shortage, suggestion.needed)}{end}"
        if not any(suggestion.fits for suggestion in shortage.suggestions):
            changes = "these changes are not enough" if shortage.suggestions else "no change of settings is enough"
            yield f"  {changes}: {_OTHERWISE[shortage.resource]}"


def stage_rows(estimate: SessionEstimate) -> list[tuple[str, str, str, str, str]]:
    """Return the table's rows: stage, time, memory, disk, traffic."""
    return [
        (
            one.stage,
            _DASH if one.seconds is None else duration_text(one.seconds),
            _DASH if one.memory_bytes is None else gigabytes(one.memory_bytes),
            gigabytes(one.disk_bytes) if one.disk_bytes else _DASH,
            gigabytes(one.traffic_bytes) if one.traffic_bytes else _DASH,
        )
        for one in estimate.stages
    ]


def total_row(estimate: SessionEstimate) -> tuple[str, str, str, str, str]:
    """Return the last row: all time, disk space and traffic, and the most memory."""
    traffic = sum(one.traffic_bytes for one in estimate.stages)
    return (
        "session",
        _DASH if estimate.time is None else duration_text(estimate.time.total),
        _DASH if estimate.memory is None else gigabytes(estimate.memory.total_bytes),
        gigabytes(estimate.disk.peak_bytes("session") + estimate.disk.peak_bytes("cache")),
        gigabytes(traffic) if traffic else _DASH,
    )


def memory_line(estimate: SessionEstimate) -> str:
    """Return the memory of each process as one line."""
    memory = estimate.memory
    if memory is None:
        return "time and memory are estimated for SmolVLA only"
    parts = [f"session {gigabytes(memory.session_bytes)}"]
    if memory.workers:
        parts.append(f"{memory.workers} worker(s) {gigabytes(memory.worker_bytes)} each")
    if memory.gpu_bytes:
        parts.append(f"GPU {gigabytes(memory.gpu_bytes)}")
    return f"memory: {', '.join(parts)}; this machine has {gigabytes(estimate.machine.memory_bytes)}"


def duration_text(seconds: float) -> str:
    """Return a rough duration.

    >>> [duration_text(s) for s in (0.2, 75, 5000, 90_000, 468_000)]
    ['1 s', '1.2 min', '1.4 h', '25 h', '130 h']
    """
    if seconds < 60:
        return f"{max(round(seconds), 1)} s"
    value, unit = (seconds / 60, "min") if seconds < 3600 else (seconds / 3600, "h")
    return f"{value:.1f} {unit}" if value < 9.95 else f"{value:.0f} {unit}"


def _amount(shortage: Shortage, value: float) -> str:
    return gigabytes(value) if shortage.resource in ("memory", "disk", "folder") else duration_text(value)

"""What this machine has: memory, cores, a GPU, free disk space."""

import os
import shutil
from pathlib import Path

from zk0.records import Record
from zk0.settings.home_folder import expand_home
from zk0.settings.session import Session

_CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")
_NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")


class HostCapacity(Record):
    """A machine that a session runs on."""

    memory_bytes: int
    cores: int
    has_gpu: bool
    free_session_bytes: int
    """Free space on the disk of `output_dir`."""
    free_cache_bytes: int
    """Free space on the disk of `cache_dir`."""
    same_disk: bool
    """Whether both are on one disk."""


def host_capacity(session: Session) -> HostCapacity:
    """Return what this machine has for a session."""
    output, cache = _existing(Path(session.output_dir)), _existing(Path(session.cache_dir))
    return HostCapacity(
        memory_bytes=_memory_bytes(),
        cores=len(os.sched_getaffinity(0)),
        has_gpu=_NVIDIA_DRIVER.exists() and session.training.device != "cpu",
        free_session_bytes=shutil.disk_usage(output).free,
        free_cache_bytes=shutil.disk_usage(cache).free,
        same_disk=output.stat().st_dev == cache.stat().st_dev,
    )


def _existing(folder: Path) -> Path:
    """Return the folder, or the nearest one above it that exists."""
    absolute = expand_home(folder).absolute()
    return next(one for one in (absolute, *absolute.parents) if one.is_dir())


def _memory_bytes() -> int:
    """Return the machine's memory, or the limit of the control group that this process runs in."""
    installed = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        limit = _CGROUP_LIMIT.read_text(encoding="ascii").strip()
    except OSError:
        return installed
    return min(installed, int(limit)) if limit.isdigit() else installed

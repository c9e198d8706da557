"""The measured speed of this machine, kept in a file so that it is measured once."""

import json
import platform
from collections.abc import Iterator
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path

from pydantic import ValidationError

from zk0.policy.policy_shapes import PolicyShapes
from zk0.resources.host_capacity import HostCapacity
from zk0.resources.run_time import Speed
from zk0.settings.session import Session
from zk0.storage.atomic import atomic_write_text

_VERSION = 1
"""Increases when speed is measured differently."""


def read_speed(session: Session, shapes: PolicyShapes, machine: HostCapacity) -> Speed | None:
    """Return the speed that was measured on this machine for such a policy; None: not measured, or a damaged file."""
    try:
        return Speed.model_validate_json(_file(session, shapes, machine).read_bytes())
    except (OSError, ValidationError):
        return None


def write_speed(session: Session, shapes: PolicyShapes, machine: HostCapacity, speed: Speed) -> None:
    """Keep a measured speed."""
    atomic_write_text(_file(session, shapes, machine), speed.model_dump_json(), durable=False)


def _file(session: Session, shapes: PolicyShapes, machine: HostCapacity) -> Path:
    """The file's name is a digest of everything that the speed depends on."""
    sizes = shapes.model_dump(exclude={"download_bytes", "parameters", "lora_sides", "trains_text", "trains_vision"})
    training = session.training
    depends_on = [
        _VERSION, sizes, len(session.contract.cameras), training.torch_threads, training.amp, machine.has_gpu,
        machine.cores, list(_processors()), version("torch"),
    ]  # fmt: skip
    digest = sha256(json.dumps(depends_on).encode()).hexdigest()
    return Path(session.cache_dir) / "speed" / f"{digest[:32]}.json"


def _processors() -> Iterator[str]:
    """Yield the names of this machine's processors and GPUs."""
    yield platform.node()
    for file in (Path("/proc/cpuinfo"), *sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))):
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines() if file.is_file() else []
        yield from sorted({line for line in lines if line.lower().startswith("model")})

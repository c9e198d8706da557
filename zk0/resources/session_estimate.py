"""Time, memory, disk space and traffic of a session by stage."""

from collections.abc import Sequence

from zk0.policy.policy_shapes import PolicyShapes, PolicySizes
from zk0.records import Record
from zk0.resources.dataset_sizes import DatasetSize, each_dataset_once
from zk0.resources.disk_use import DiskUse, disk_use, downlink_bytes, update_bytes
from zk0.resources.host_capacity import HostCapacity
from zk0.resources.memory_use import MemoryUse, memory_use
from zk0.resources.run_time import RunTime, Speed, run_time
from zk0.settings.session import Session

_DISK_STAGES = {
    "datasets and policy": ("downloaded datasets", "repaired copies", "simulated recordings"),
    "features": ("features",),
    "training": ("global weights", "clients' updates", "server state"),
    "attempts and videos": ("videos and attempts",),
    "policies and report": ("saved policies", "logs, charts and report"),
}


class StageEstimate(Record):
    """One stage of a session."""

    stage: str
    seconds: float | None
    """None: not estimated."""
    memory_bytes: int | None
    """Of all processes together; None: little."""
    disk_bytes: int
    traffic_bytes: int
    """Over the network of this machine."""


class SessionEstimate(Record):
    """What a session needs of a machine."""

    stages: tuple[StageEstimate, ...]
    memory: MemoryUse | None
    """None: not estimated, as of policies other than SmolVLA."""
    disk: DiskUse
    time: RunTime | None
    """None: the speed of the machine is not known, or the policy is not SmolVLA."""
    speed: Speed | None
    machine: HostCapacity


def estimate_session(
    session: Session, sizes: Sequence[DatasetSize], policy: PolicySizes, machine: HostCapacity, speed: Speed | None
) -> SessionEstimate:
    """Return what a session needs of a machine; without a speed, no times; memory and times for SmolVLA only."""
    disk, memory, time = disk_use(session, sizes, policy), None, None
    if isinstance(policy, PolicyShapes):
        memory = memory_use(session, sizes, policy, machine.has_gpu)
        time = None if speed is None else run_time(session, sizes, policy, speed, machine)
    return SessionEstimate(
        stages=_stages(session, sizes, policy, (disk, memory, time)),
        memory=memory,
        disk=disk,
        time=time,
        speed=speed,
        machine=machine,
    )


def _stages(
    session: Session,
    sizes: Sequence[DatasetSize],
    policy: PolicySizes,
    needs: tuple[DiskUse, MemoryUse | None, RunTime | None],
) -> tuple[StageEstimate, ...]:
    disk, memory, time = needs
    missing = [size for size in each_dataset_once(sizes) if size.source == "hub" and not size.is_here]
    downloads = policy.download_bytes + sum(size.stored_bytes for size in missing)
    traffic = {"datasets and policy": downloads, **_round_traffic(session, policy)}
    seconds = _stage_seconds(time) if time else {}
    heavy = ("features", "training", "evaluation")
    return tuple(
        StageEstimate(
            stage=stage,
            seconds=seconds.get(stage),
            memory_bytes=memory.total_bytes if memory and stage in heavy else None,
            disk_bytes=sum(part.peak_bytes for part in disk.parts if part.purpose in _DISK_STAGES.get(stage, ())),
            traffic_bytes=traffic.get(stage, 0),
        )
        for stage in (
            "datasets and policy",
            "checks",
            "features",
            "training",
            "evaluation",
            "attempts and videos",
            "policies and report",
        )
    )


def _stage_seconds(time: RunTime) -> dict[str, float | None]:
    """Downloads take as long as the network lets them: only recordings of the simulator have a time."""
    return {
        "datasets and policy": time.record_simulated or None,
        "checks": time.check_datasets,
        "features": time.features,
        "training": time.training,
        "evaluation": time.evaluation,
        "attempts and videos": time.attempts,
    }


def _round_traffic(session: Session, policy: PolicySizes) -> dict[str, int]:
    """Bytes that a server of the deployment engine sends and receives; on one machine, files are linked."""
    if session.federation.engine != "deployment":
        return {}
    clients = max(len(session.client_names()), session.federation.min_updates)
    down, up = downlink_bytes(session, policy), update_bytes(session, policy)
    evaluated = sum(session.evaluates_on_clients_after(number) for number in range(session.rounds + 1))
    return {"training": session.rounds * clients * (down + up), "evaluation": evaluated * clients * down}

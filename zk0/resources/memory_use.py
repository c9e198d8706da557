"""Memory of a session's processes, estimated from the policy's sizes and the settings."""

from collections.abc import Sequence
from math import ceil, floor

from zk0.policy.policy_shapes import PolicyShapes
from zk0.records import Record
from zk0.resources.dataset_sizes import DatasetSize
from zk0.resources.policy_work import activation_bytes
from zk0.settings.session import Session

_PROCESS_BYTES = 970_000_000
"""Python, PyTorch and LeRobot; measured with the tiny policy: 925 to 944 MiB."""
_PREFECT_BYTES = 300_000_000
_CUDA_BYTES = 600_000_000
"""Context and kernels of a process on a GPU."""


class MemoryUse(Record):
    """Memory of a session's processes on one machine."""

    session_bytes: int
    """Of the session's process, in which the server's part runs, and of a temporary Prefect server."""
    worker_bytes: int
    """Of one worker process; 0 without any."""
    workers: int
    """Worker processes that work at the same time."""
    gpu_bytes: int
    """On the GPU, all processes together; 0 without one."""

    @property
    def total_bytes(self) -> int:
        """Of all processes."""
        return self.session_bytes + self.workers * self.worker_bytes


def memory_use(session: Session, sizes: Sequence[DatasetSize], shapes: PolicyShapes, on_gpu: bool) -> MemoryUse:
    """Return the memory that a session's processes need.

    Args:
        session: the settings.
        sizes: of the datasets.
        shapes: of the policy.
        on_gpu: whether policy and training steps are on a GPU.
    """
    cameras, training = len(session.contract.cameras), session.training
    weights = shapes.frozen_bytes + shapes.weight_bytes
    rows = max((ceil(s.training_frames / s.clients) for s in sizes if s.clients), default=0)
    batch = min(training.batch_size, rows or training.batch_size)
    frames = ceil(batch / (training.accumulate_steps or batch))  # 0: as few as must be
    step = _training_bytes(session, shapes) + frames * activation_bytes(shapes, cameras, training.features)
    joints = len(session.contract.joints)
    arrays = 2 * 4 * rows * shapes.chunk * joints  # chunks as recorded and normalized
    build = 4 * shapes.parameters + 2 * shapes.text.layers * 4 * _text_layer_parameters(shapes)
    working = build if on_gpu else max(build, weights + step)
    clients = len(session.local_clients())
    workers = min(session.federation.workers, clients)
    here = clients and not workers
    return MemoryUse(
        session_bytes=_PROCESS_BYTES + _PREFECT_BYTES + (working + arrays if here else build),
        worker_bytes=_PROCESS_BYTES + working + arrays if workers else 0,
        workers=workers,
        gpu_bytes=_gpu_bytes(session, weights, step) if on_gpu else 0,
    )


def _training_bytes(session: Session, shapes: PolicyShapes) -> int:
    """Gradient, AdamW's two moments and the anchor of the proximal term, float32, of each trained parameter."""
    lora = session.training.scope == "lora"
    return 16 * (session.training.lora_rank * shapes.lora_sides if lora else shapes.trainable)


def _text_layer_parameters(shapes: PolicyShapes) -> int:
    """Parameters of a layer of the language model: LeRobot builds twice as many layers as it keeps."""
    text = shapes.text
    return text.width * (2 * text.query_width + 2 * text.key_width + text.matrices * text.hidden) // 2


def _gpu_bytes(session: Session, weights: int, step: int) -> int:
    share = session.training.gpu_share
    clients = max(len(session.local_clients()), 1)
    at_once = min(session.federation.workers or 1, clients, floor(1 / share + 1e-9) if share else clients)
    return at_once * (weights + step + _CUDA_BYTES) + (weights + _CUDA_BYTES if session.federation.workers else 0)

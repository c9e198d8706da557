"""Time of a session by stage, estimated from operations and from the speed of a machine."""

from collections.abc import Sequence
from math import ceil

from zk0.policy.policy_shapes import PolicyShapes
from zk0.records import Record
from zk0.resources.dataset_sizes import DatasetSize
from zk0.resources.host_capacity import HostCapacity
from zk0.resources.policy_work import PolicyWork, policy_work
from zk0.settings.session import Session

_DECODE_SECONDS_PER_PIXEL = 9e-9
"""AV1, frame after frame; measured: 2.8 ms for 480x640 pixels."""
_RENDER_SECONDS_PER_PIXEL = 1e-6
"""The simulator, on a CPU; measured: 100 ms for two images of 224x224 pixels."""


class Speed(Record):
    """How fast one client's process computes on a machine."""

    vision: float
    """Operations per second of the vision encoder, forward."""
    text: float
    """Of the language model, forward."""
    expert: float
    """Of the action expert, forward and backward."""
    optimizer: float
    """Parameters per second that AdamW updates, gradient clipping included."""
    source: str
    """What it was measured on, for the reader."""


class RunTime(Record):
    """Seconds of each stage of a session, on one machine."""

    record_simulated: float
    check_datasets: float
    features: float
    training: float
    evaluation: float
    attempts: float
    longest_turn: float
    """Training of the client with most frames in one round."""

    @property
    def total(self) -> float:
        """All stages together."""
        stages = (self.record_simulated, self.check_datasets, self.features)
        return sum(stages) + self.training + self.evaluation + self.attempts


def reference_speed(shapes: PolicyShapes) -> Speed:
    """Return the speed of one CPU core on which SmolVLA was measured; other cores are within a factor of about three.

    The vision-language model computes in the type that its weights have, and on most CPUs bf16 is slower than float32.
    """
    in_bf16 = shapes.value_bytes == 2
    vision, text = (67e9, 57e9) if in_bf16 else (108e9, 113e9)
    return Speed(
        vision=vision,
        text=text,
        expert=94e9,
        optimizer=4.3e8,
        source="a server CPU, not measured here",
    )


def run_time(
    session: Session, sizes: Sequence[DatasetSize], shapes: PolicyShapes, speed: Speed, machine: HostCapacity
) -> RunTime:
    """Return the time of each stage; where clients work beside each other, that of the last of them."""
    cameras = len(session.contract.cameras)
    work, at_once = policy_work(shapes, cameras), clients_at_once(session, machine)
    encode = _encode_seconds(session, work, speed)
    evaluate = _evaluate_seconds(session, shapes, work, speed)
    clients, sets = [s for s in sizes if s.clients], [s for s in sizes if not s.clients]
    rounds = range(session.rounds + 1)
    client_rounds = sum(session.evaluates_on_clients_after(number) for number in rounds)
    server_rounds = sum(session.evaluates_after(number) for number in rounds)
    turns = [_training_seconds(s, session, work, shapes, speed) for s in clients for _ in range(s.clients)]
    is_buffered = session.federation.mode == "buffered"
    least = session.buffer.size if is_buffered else session.federation.min_updates
    share = max(0.0 if is_buffered else session.federation.fraction_fit, least / max(len(turns), 1))
    return RunTime(
        record_simulated=sum(s.frames * s.pixels for s in sizes if s.source == "simulator") * _RENDER_SECONDS_PER_PIXEL,
        check_datasets=_spread([_decode_seconds(s, s.frames) for s in clients], at_once)
        + sum(_decode_seconds(s, s.frames) for s in sets),
        features=_spread([_feature_seconds(s, session, encode) for s in clients], at_once)
        + sum(_feature_seconds(s, session, encode) for s in sets),
        training=session.rounds * (_buffer_seconds if is_buffered else _spread)(turns, at_once, min(share, 1.0)),
        evaluation=client_rounds * _spread([_evaluated_frames(s, session) * evaluate for s in clients], at_once)
        + server_rounds * sum(_evaluated_frames(s, session) * evaluate for s in sets),
        attempts=_attempt_seconds(session, shapes, work, speed),
        longest_turn=max(turns, default=0.0),
    )


def clients_at_once(session: Session, machine: HostCapacity) -> int:
    """Return how many clients of this machine compute at the same time; on a GPU they share its speed."""
    workers = max(1, min(session.federation.workers, len(session.local_clients())))
    return 1 if machine.has_gpu else max(1, min(workers, machine.cores // session.training.torch_threads))


def _spread(seconds: Sequence[float], at_once: int, share: float = 1.0) -> float:
    return max(max(seconds), share * sum(seconds) / at_once) if seconds else 0.0


def _buffer_seconds(seconds: Sequence[float], at_once: int, share: float) -> float:
    """Return the time of a server step that waits for no client in particular."""
    return share * sum(seconds) / at_once


def _decode_seconds(size: DatasetSize, frames: float) -> float:
    return frames * size.pixels * _DECODE_SECONDS_PER_PIXEL


def _encode_seconds(session: Session, work: PolicyWork, speed: Speed) -> float:
    """Of the features of one frame, without decoding."""
    if session.training.features == "off":
        return 0.0
    language = work.text / speed.text if session.training.features == "kv" else 0.0
    return work.vision / speed.vision + language


def _feature_seconds(size: DatasetSize, session: Session, encode: float) -> float:
    if session.training.features == "off":
        return 0.0
    frames = size.training_frames + _evaluated_frames(size, session)
    return frames * encode + _decode_seconds(size, frames)


def _evaluated_frames(size: DatasetSize, session: Session) -> int:
    return size.held_out_episodes * ceil(size.frames_per_episode / session.evaluation.every_frames)


def _prefix_seconds(session: Session, work: PolicyWork, speed: Speed) -> float:
    """What a step computes of each frame before the action expert."""
    language = {"embeddings": 1.0, "kv": 0.0, "off": 2.0}[session.training.features] * work.text / speed.text
    return language + (work.vision / speed.vision if session.training.features == "off" else 0.0)


def _training_seconds(
    size: DatasetSize, session: Session, work: PolicyWork, shapes: PolicyShapes, speed: Speed
) -> float:
    """Of one client in one round."""
    training, frames = session.training, ceil(size.training_frames / max(size.clients, 1))
    steps = training.local_steps or ceil(frames / training.batch_size) * (training.local_epochs or 1)
    per_frame = _prefix_seconds(session, work, speed) + 3 * work.expert / speed.expert
    per_frame += work.text / speed.text if shapes.trains_text or shapes.trains_vision else 0.0
    per_frame += 2 * work.vision / speed.vision if shapes.trains_vision else 0.0
    if training.features == "off":
        per_frame += _decode_seconds(size, 10)  # random access decodes 10 times as much
    trained = training.lora_rank * shapes.lora_sides if training.scope == "lora" else shapes.trainable
    return steps * (min(training.batch_size, frames) * per_frame + trained / speed.optimizer)


def _evaluate_seconds(session: Session, shapes: PolicyShapes, work: PolicyWork, speed: Speed) -> float:
    """Of one frame: the expert runs for each flow-matching time, and for each step of a prediction."""
    passes = session.evaluation.times + shapes.denoising_steps
    return _prefix_seconds(session, work, speed) + passes * work.expert / speed.expert


def _attempt_seconds(session: Session, shapes: PolicyShapes, work: PolicyWork, speed: Speed) -> float:
    rollout = session.rollout
    attempts = len(rollout.tasks) * len(rollout.seeds)
    steps = attempts * rollout.max_steps * sum(session.rolls_out_after(n) for n in range(session.rounds + 1))
    predict = work.vision / speed.vision + work.text / speed.text + shapes.denoising_steps * work.expert / speed.expert
    pixels = 2 * session.simulator.image_size**2
    return steps * (pixels * _RENDER_SECONDS_PER_PIXEL + predict / rollout.replan_steps)

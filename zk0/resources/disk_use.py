"""Disk space of a session: most while it runs, and what stays when it has ended."""

from collections.abc import Sequence
from math import ceil
from typing import Literal

from zk0.aggregation.strategies import build_strategy
from zk0.policy.policy_shapes import PolicySizes
from zk0.records import Record, WireDtype
from zk0.resources.dataset_sizes import DatasetSize, each_dataset_once
from zk0.settings.session import Session

_WIRE_BYTES: dict[WireDtype, float] = {"fp32": 4.0, "bf16": 2.0, "int8": 1.1}
"""Bytes of a weight in a message; int8 has a scale for each channel."""
_FILE_BYTES = 65_536
"""Header of a weights file, and its share of a file system's blocks."""
_REPORT_BYTES = 6_000_000
_ROUND_BYTES = 60_000
"""Logs, metrics and records of a round."""
_CLIENT_ROUND_BYTES = 40_000
_VIDEO_BYTES_PER_STEP = 20_000
"""Of a video with cameras of 240 pixels of height."""
_DESCRIPTION_BYTES = 200_000
"""config.json, processors and model card of a saved policy."""


class DiskPart(Record):
    """Disk space for one purpose."""

    purpose: str
    place: Literal["session", "cache"]
    """In the session's folder, or in `cache_dir`, which other sessions use, too."""
    peak_bytes: int
    """Most at any time."""
    kept_bytes: int
    """What stays when the session has ended."""


class DiskUse(Record):
    """Disk space of a session by purpose."""

    parts: tuple[DiskPart, ...]

    def peak_bytes(self, place: Literal["session", "cache"]) -> int:
        """Most bytes at any time in one place."""
        return sum(part.peak_bytes for part in self.parts if part.place == place)

    def kept_bytes(self, place: Literal["session", "cache"]) -> int:
        """Bytes in one place when the session has ended."""
        return sum(part.kept_bytes for part in self.parts if part.place == place)


def disk_use(session: Session, sizes: Sequence[DatasetSize], shapes: PolicySizes) -> DiskUse:
    """Return the disk space that a session needs at most, with everything in it that must be computed or fetched."""
    parts = (
        *_cache_parts(session, sizes, shapes),
        _weights(session, shapes),
        _updates(session, shapes),
        _server_state(session, shapes),
        _saved_policies(session, shapes),
        _videos(session, sizes),
        _logs(session),
    )
    return DiskUse(parts=tuple(part for part in parts if part.peak_bytes))


def feature_frames(session: Session, sizes: Sequence[DatasetSize]) -> int:
    """Return the number of frames whose features are computed: those of training and evaluation."""
    every = session.evaluation.every_frames
    evaluates_clients = session.evaluation.clients_frequency > 0
    total = 0
    for size in sizes:
        total += size.training_frames
        if size.clients == 0 or evaluates_clients:
            total += size.held_out_episodes * ceil(size.frames_per_episode / every)
    return total


def _cache_parts(
    session: Session, sizes: Sequence[DatasetSize], shapes: PolicySizes
) -> tuple[DiskPart, DiskPart, DiskPart, DiskPart]:
    once = each_dataset_once(sizes)
    downloads = sum(size.stored_bytes for size in once if size.source == "hub" and not size.is_here)
    copies = sum(size.stored_bytes for size in once if size.needs_repair)
    recordings = sum(size.stored_bytes for size in once if size.source == "simulator")
    per_frame = shapes.feature_bytes(len(session.contract.cameras), session.training.features)
    episodes = sum(size.episodes for size in sizes)
    features = feature_frames(session, sizes) * per_frame + (episodes * 512 if per_frame else 0)
    limit = int(session.training.feature_cache_gb * 1e9)
    return (
        _cached("downloaded datasets", downloads),
        _cached("repaired copies", copies),
        _cached("simulated recordings", recordings),
        _cached("features", min(features, limit)),
    )


def _cached(purpose: str, size: int) -> DiskPart:
    return DiskPart(purpose=purpose, place="cache", peak_bytes=size, kept_bytes=size)


def _in_session(purpose: str, peak: float, kept: float) -> DiskPart:
    return DiskPart(purpose=purpose, place="session", peak_bytes=ceil(peak), kept_bytes=ceil(kept))


def _weights(session: Session, shapes: PolicySizes) -> DiskPart:
    """Global weights of the rounds that are kept; beside them the best round's, those of now, and the new ones.

    With buffered rounds also those from which clients still train, at most one for each client.
    """
    one = shapes.weight_bytes + _FILE_BYTES
    rounds = sum(session.keeps_weights_of(number) for number in range(session.rounds + 1))
    best, older = 0 if rounds == session.rounds + 1 else 1, _older_starts(session)
    most = min(rounds + best + older, session.rounds + 1) + 2
    return _in_session("global weights", most * one, min(rounds + best + older, session.rounds + 1) * one)


def _older_starts(session: Session) -> int:
    """Return from how many older rounds clients may still train at a time."""
    return len(session.client_names()) if session.federation.mode == "buffered" else 0


def _updates(session: Session, shapes: PolicySizes) -> DiskPart:
    """Each client's update and the file before it, whose blocks the next one reuses; the spool links the same files."""
    clients = max(len(session.client_names()), session.federation.min_updates)
    one = update_bytes(session, shapes)
    files = clients + session.federation.secure  # the sum of masked updates is one more
    pending = files * 2 * one + clients * _client_state_bytes(session, shapes)
    kept = session.rounds * files * one if session.keep_updates else 0
    return _in_session("clients' updates", pending + kept, kept)


def update_bytes(session: Session, shapes: PolicySizes) -> int:
    """Return the size of the file that a client sends in a round, without lossless compression."""
    if session.training.scope == "lora":
        return 4 * session.training.lora_rank * shapes.lora_sides + _FILE_BYTES
    if session.federation.secure:
        return session.federation.secure_bits // 8 * shapes.trainable + _FILE_BYTES
    each = _WIRE_BYTES[session.federation.wire] * (2 if _uses_control_variates(session) else 1)
    return ceil(each * shapes.trainable) + _FILE_BYTES


def downlink_bytes(session: Session, shapes: PolicySizes) -> int:
    """Return the size of the file that a client receives in a round."""
    each = _WIRE_BYTES[session.federation.wire_down] * (2 if _uses_control_variates(session) else 1)
    return ceil(each * shapes.trainable) + _FILE_BYTES


def _client_state_bytes(session: Session, shapes: PolicySizes) -> int:
    """Of what a client keeps, old and new: int8's quantization error, its control variate, or deltas before masking."""
    has_state = _uses_control_variates(session) or session.federation.wire == "int8" or session.federation.secure
    state = 2 * shapes.weight_bytes if has_state else 0
    return state + (update_bytes(session, shapes) if session.federation.compress else 0)


def _server_state(session: Session, shapes: PolicySizes) -> DiskPart:
    """The server's optimizer or control variate, before and after a round, and weights encoded for clients."""
    slots = len(build_strategy(session.aggregation).state_slots) + _uses_control_variates(session)
    encoded = _uses_control_variates(session) or session.federation.wire_down != "fp32"
    sent = (2 + _older_starts(session)) * downlink_bytes(session, shapes) if encoded else 0
    return _in_session("server state", 2 * slots * shapes.weight_bytes + sent, slots * shapes.weight_bytes + sent)


def _uses_control_variates(session: Session) -> bool:
    return build_strategy(session.aggregation).uses_control_variates


def _saved_policies(session: Session, shapes: PolicySizes) -> DiskPart:
    """Saved policies, among them that of the best round and the clients' own."""
    saved = sum(session.saves_policy_after(number) for number in range(session.rounds + 1))
    own = len(session.client_names()) if session.training.personal else 0
    size = (min(saved + 1, session.rounds + 1) + own) * (shapes.saved_bytes + _DESCRIPTION_BYTES)
    return _in_session("saved policies", size, size)


def _videos(session: Session, sizes: Sequence[DatasetSize]) -> DiskPart:
    """Videos of attempts and of evaluation episodes, and the datasets of attempts if they are kept."""
    video, rollout = session.video, session.rollout
    rounds = range(session.rounds + 1)
    rollout_rounds = sum(session.rolls_out_after(number) for number in rounds)
    scale = (video.camera_height / 240) ** 2 * _VIDEO_BYTES_PER_STEP
    attempts = len(rollout.tasks) * len(rollout.seeds) * rollout_rounds
    filmed = len(rollout.tasks) * min(video.rollouts, len(rollout.seeds)) * rollout_rounds
    episodes = sum(min(video.episodes, size.held_out_episodes) * size.frames_per_episode for size in sizes)
    rendered = episodes * sum(session.renders_videos_after(number) for number in rounds)
    frame_bytes = 2 * session.simulator.image_size**2 * 0.2 if rollout.keep_dataset else 0
    total = (filmed * rollout.max_steps + rendered) * scale + attempts * (rollout.max_steps * frame_bytes + 1000)
    return _in_session("videos and attempts", total, total)


def _logs(session: Session) -> DiskPart:
    clients = max(len(session.client_names()), session.federation.min_updates)
    size = _REPORT_BYTES + (session.rounds + 1) * (_ROUND_BYTES + clients * _CLIENT_ROUND_BYTES)
    return _in_session("logs, charts and report", size, size)

"""Cache on the client's disk for what the policy's frozen layers compute of each frame.

The cache holds one memory-mapped file for each episode, and epochs, rounds, sessions and evaluations share it. A file's
name is a digest of everything that its content depends on. Features are as private as the video that they were
computed from, and never leave the machine.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zk0.data.episode_reader import Episode, EpisodeReader
from zk0.data.frame_stream import FRAMES_AT_ONCE, compute_ahead
from zk0.errors import SettingsError
from zk0.policy.smolvla.frame_features import FEATURE_KINDS, FeatureKind, FrameFeatures, TokenizedTasks
from zk0.policy.smolvla.prefix import Prefix, check_prefix_cacheable
from zk0.policy.trainable import frozen_digest
from zk0.records import CAMERA_PREFIX
from zk0.training.array_cache import ArrayCache, array_file_bytes

FrameProgressCallback = Callable[[int, int], None]
"""Called with the number of frames whose features have been computed, and the number of frames to compute."""


class FeatureCache:
    """Features of episodes, addressed by content.

    Args:
        folder: the folder of the files.
        policy: whose frozen layers compute the features.
        cameras: names of the cameras, in the policy's order.
        kind: what to store of each frame.
        limit_bytes: limit for all files in the folder together.
        frozen: the digest of the policy's frozen weights, if it is known; else it is computed.

    Raises:
        PolicyError: this policy's features depend on trainable weights or on the configuration; the message says how.
    """

    def __init__(
        self,
        folder: Path,
        policy: Any,
        cameras: Sequence[str],
        kind: FeatureKind = "embeddings",
        limit_bytes: int = 10**9,
        frozen: str | None = None,
    ) -> None:
        check_prefix_cacheable(policy)
        self.policy = policy
        self.cameras = tuple(cameras)
        self.dtype = next(policy.model.vlm_with_expert.vlm.parameters()).dtype
        self._kind = kind
        self._features: FrameFeatures = FEATURE_KINDS[kind](policy, len(self.cameras))
        self._stored_dtype = (
            np.dtype(np.int16) if self.dtype == torch.bfloat16 else torch.empty(0, dtype=self.dtype).numpy().dtype
        )
        self._arrays = ArrayCache(folder, limit_bytes)
        self._frozen = frozen or frozen_digest(policy)
        self._video_digests: dict[Path, str] = {}

    def episode_features(
        self,
        reader: EpisodeReader,
        episodes: Sequence[Episode],
        tasks: Sequence[TokenizedTasks],
        on_frames: FrameProgressCallback | None = None,
        every: int = 1,
    ) -> list[NDArray[Any]]:
        """Features of each episode (frames, *frame_shape), in order, memory-mapped; missing ones are computed first.

        Args:
            reader: decodes the frames.
            episodes: the episodes, read by `reader`.
            tasks: for each episode, the tokenized tasks of its frames 0, `every`, 2 `every`, ...
            on_frames: called after each batch of computed frames.
            every: N: features of frames 0, N, 2N, ... of each episode only.

        Raises:
            DatasetError: a frame cannot be decoded.
            SettingsError: the features need more bytes than the limit; then nothing is computed.
        """
        shapes = [(len(t.lengths), *self._features.frame_shape(t)) for t in tasks]
        self._check_limit(shapes)
        names = [self._file_name(reader, e, t, every) for e, t in zip(episodes, tasks, strict=True)]
        found = [self._arrays.open(name, shape, self._stored_dtype) for name, shape in zip(names, shapes, strict=True)]
        missing = [i for i, features in enumerate(found) if features is None]
        total, done = sum(shapes[i][0] for i in missing), 0
        for i in missing:
            parts = self._compute(reader, episodes[i], tasks[i], every)
            self._arrays.write(names[i], shapes[i], self._stored_dtype, _with_progress(parts, done, total, on_frames))
            done += shapes[i][0]
            found[i] = self._arrays.open(names[i], shapes[i], self._stored_dtype)
        if unread := [name for name, features in zip(names, found, strict=True) if features is None]:
            raise AssertionError(f"{unread[0]}: was just written and cannot be read")
        return [features for features in found if features is not None]

    def stack_features(
        self,
        frames: Sequence[NDArray[Any]],
        tasks: TokenizedTasks,
        empty: Callable[[tuple[int, ...], torch.dtype], Tensor],
    ) -> Tensor:
        """The stored features of a batch of frames in the host's memory, in the dtype they were computed in.

        Args:
            frames: stored features of each frame.
            tasks: the frames' tasks.
            empty: allocates the memory of a shape and dtype.
        """
        stored_dtype = torch.int16 if self.dtype == torch.bfloat16 else self.dtype
        batch = empty((len(frames), *self._features.frame_shape(tasks)), stored_dtype)
        self._features.fill_batch(batch.numpy(), frames)
        return batch.view(self.dtype)

    def build_prefix(self, features: Tensor, tasks: TokenizedTasks) -> Prefix:
        """The prefix of a batch of frames, from features and tasks on the policy's device."""
        return self._features.build_prefix(features, tasks)

    def _check_limit(self, shapes: Sequence[tuple[int, ...]]) -> None:
        needed = sum(array_file_bytes(shape, self._stored_dtype) for shape in shapes)
        if needed > self._arrays.limit_bytes:
            frames = sum(shape[0] for shape in shapes)
            per_frame = max(int(np.prod(shape[1:])) for shape in shapes) * self._stored_dtype.itemsize
            raise SettingsError(
                f"training.features {self._kind} needs {per_frame:,} bytes a frame, {needed:,} for {frames} frames in "
                f"{len(shapes)} episodes; training.feature_cache_gb allows {self._arrays.limit_bytes:,}: raise it, or "
                'store less with training.features = "embeddings" or "off"'
            )

    def _file_name(self, reader: EpisodeReader, episode: Episode, tasks: TokenizedTasks, every: int) -> str:
        """SHA-256 of everything that the features of an episode depend on."""
        videos = {}
        for camera in self.cameras:
            path, *span = reader.frame_location(episode, camera)
            if path not in self._video_digests:
                with path.open("rb") as file:
                    self._video_digests[path] = hashlib.file_digest(file, "sha256").hexdigest()
            videos[camera] = [self._video_digests[path], *span]
        parts = {  # other keys would give other names: caches that exist would be computed again
            "kind": self._kind,
            "words": self._features.task_key(tasks),
            "frozen": self._frozen,
            "videos": videos,
            "times": hashlib.sha256(episode.timestamps.tobytes()).hexdigest(),
            "resize": self.policy.config.resize_imgs_with_padding,
            "dtype": str(self.dtype),
            "device": str(self.policy.config.device),
            "versions": [version(package) for package in ("torch", "lerobot", "transformers")],
            **({"every": every} if every > 1 else {}),
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=False).encode()).hexdigest()

    def _compute(
        self, reader: EpisodeReader, episode: Episode, tasks: TokenizedTasks, every: int
    ) -> Iterator[NDArray[Any]]:
        """Features of frames 0, `every`, 2 `every`, ... in their stored dtype.

        One piece of frames is encoded at a time, while the next one is decoded.
        """
        device, keys = self.policy.config.device, [f"{CAMERA_PREFIX}{c}" for c in self.cameras]
        pieces = zip(*(reader.frame_pieces(episode, c, every) for c in self.cameras), strict=True)
        for number, piece in enumerate(compute_ahead(pieces)):
            at = slice(number * FRAMES_AT_ONCE, (number + 1) * FRAMES_AT_ONCE)
            images = {k: torch.from_numpy(v).to(device).float() / 255 for k, v in zip(keys, piece, strict=True)}
            of_batch = TokenizedTasks(tasks.tokens[at], tasks.mask[at], tasks.lengths[at])  # not cut: as long as stored
            features = self._features.compute(images, of_batch).cpu()
            yield (features.view(torch.int16) if features.dtype == torch.bfloat16 else features).numpy()


def _with_progress(
    parts: Iterator[NDArray[Any]], done: int, total: int, on_frames: FrameProgressCallback | None
) -> Iterator[NDArray[Any]]:
    for part in parts:
        yield part
        done += len(part)
        if on_frames:
            on_frames(done, total)

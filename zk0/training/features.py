"""What the frozen part of the policy says of every frame, computed once and kept on the client's disk.

One file an episode, memory-mapped when read, shared by epochs, rounds, sessions and the evaluation. A file
is named by everything its content depends on; it is as private as the video it was made from and never
leaves the machine.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zk0.errors import SettingsError
from zk0.records import CAMERA_PREFIX
from zk0.robot.dataset import Episode, EpisodeReader
from zk0.robot.policy import frozen_digest
from zk0.robot.prefix import Prefix, check_prefix_is_frozen, embed_frames, encode_prefix, prefix_geometry
from zk0.training.kept_arrays import KeptArrays, array_bytes

_FRAMES_AT_ONCE = 32
KindName = Literal["embeddings", "kv"]
FramesListener = Callable[[int, int], None]
"""Told the frames that are computed so far, and how many have to be."""


@dataclass(frozen=True)
class Words:
    """The tokenised tasks of some frames, padded on the right."""

    tokens: Tensor
    """(frames, length)"""
    mask: Tensor
    """(frames, length) bool: False where padded."""
    lengths: NDArray[np.int64]
    """(frames,) on the CPU: a batch is cut to its longest task with no wait for the GPU."""

    @staticmethod
    def of(tokens: Tensor, mask: Tensor) -> "Words":
        """Words as a preprocessor gives them."""
        return Words(tokens, mask, mask.sum(dim=1).cpu().numpy())

    def __getitem__(self, frames: Sequence[int] | slice) -> "Words":
        """Those of some frames, no longer than the longest of them."""
        lengths = self.lengths[frames]
        at, longest = torch.from_numpy(np.arange(len(self.lengths))[frames]), int(lengths.max())
        return Words(self.tokens[at, :longest], self.mask[at, :longest], lengths)


class _Kind(Protocol):
    """What is kept of a frame, and how a prefix comes of it."""

    def frame_shape(self, words: Words) -> tuple[int, ...]:
        """Of one frame's features."""

    def depends_on(self, words: Words) -> str:
        """What of the task decides the features."""

    def compute(self, images: dict[str, Tensor], words: Words) -> Tensor:
        """(frames, *frame_shape) in the dtype of the vision-language model."""

    def gather(self, kept: Sequence[NDArray[Any]], words: Words) -> NDArray[Any]:
        """The features of a batch of frames, which may be of several episodes."""

    def prefix(self, features: Tensor, words: Words) -> Prefix:
        """The prefix that a batch of features stands for."""


@dataclass(frozen=True)
class _Embeddings:
    """Connector outputs (cameras, tokens, width): the language model runs in every step, without a graph."""

    policy: Any
    cameras: int

    def frame_shape(self, words: Words) -> tuple[int, ...]:
        geometry = prefix_geometry(self.policy)
        return (self.cameras, geometry.image_tokens, geometry.width)

    def depends_on(self, words: Words) -> str:
        return ""

    def compute(self, images: dict[str, Tensor], words: Words) -> Tensor:
        return embed_frames(self.policy, images)

    def gather(self, kept: Sequence[NDArray[Any]], words: Words) -> NDArray[Any]:
        return np.stack(kept)

    def prefix(self, features: Tensor, words: Words) -> Prefix:
        return encode_prefix(self.policy, features, words.tokens, words.mask)


@dataclass(frozen=True)
class _KeysAndValues:
    """Keys and values (layers, 2, tokens, kv heads, head dim) of images and task: only the state token runs."""

    policy: Any
    cameras: int

    def frame_shape(self, words: Words) -> tuple[int, ...]:
        geometry = prefix_geometry(self.policy)
        tokens = self.cameras * geometry.image_tokens + words.tokens.shape[1]
        return (geometry.layers, 2, tokens, geometry.kv_heads, geometry.head_dim)

    def depends_on(self, words: Words) -> str:
        said = words.tokens.cpu().numpy().tobytes() + words.mask.cpu().numpy().tobytes()
        return hashlib.sha256(said).hexdigest()

    def compute(self, images: dict[str, Tensor], words: Words) -> Tensor:
        return encode_prefix(self.policy, embed_frames(self.policy, images), words.tokens, words.mask).stacked()

    def gather(self, kept: Sequence[NDArray[Any]], words: Words) -> NDArray[Any]:
        """An episode is kept with the length of its longest task; a batch has that of its own."""
        shape = self.frame_shape(words)
        batch = np.zeros((len(kept), *shape), kept[0].dtype)
        for row, one in zip(batch, kept, strict=True):
            tokens = min(one.shape[2], shape[2])
            row[:, :, :tokens] = one[:, :, :tokens]
        return batch

    def prefix(self, features: Tensor, words: Words) -> Prefix:
        images = torch.ones_like(words.mask[:, :1]).expand(-1, features.shape[3] - words.mask.shape[1])
        return Prefix.of(features, torch.cat([images, words.mask], dim=1))


_KINDS: dict[KindName, type[_Embeddings] | type[_KeysAndValues]] = {"embeddings": _Embeddings, "kv": _KeysAndValues}


class FeatureCache:
    """Features of episodes, by content.

    Args:
        kind: what is kept of each frame.
        limit_bytes: of all files in the folder together.
        frozen: the digest of the policy's frozen weights where it is known already.

    Raises:
        PolicyError: this policy's features depend on what is trained; says on what.
    """

    def __init__(
        self,
        folder: Path,
        policy: Any,
        cameras: Sequence[str],
        kind: KindName = "embeddings",
        limit_bytes: int = 10**9,
        frozen: str | None = None,
    ) -> None:
        check_prefix_is_frozen(policy)
        self.policy = policy
        self.cameras = tuple(cameras)
        self.dtype = next(policy.model.vlm_with_expert.vlm.parameters()).dtype
        self._kind_name, self._kind = kind, _KINDS[kind](policy, len(self.cameras))
        self._stored = (
            np.dtype(np.int16) if self.dtype == torch.bfloat16 else torch.empty(0, dtype=self.dtype).numpy().dtype
        )
        self._kept = KeptArrays(folder, limit_bytes)
        self._frozen = frozen or frozen_digest(policy)
        self._files: dict[Path, str] = {}

    def episodes(
        self,
        reader: EpisodeReader,
        episodes: Sequence[Episode],
        words: Sequence[Words],
        on_frames: FramesListener | None = None,
    ) -> list[NDArray[Any]]:
        """Features of each episode, in order, memory-mapped; those not kept yet are computed first.

        Raises:
            DatasetError: a frame cannot be decoded.
            SettingsError: they need more than the limit; nothing is computed then.
        """
        shapes = [(len(e.timestamps), *self._kind.frame_shape(w)) for e, w in zip(episodes, words, strict=True)]
        self._check_limit(shapes)
        names = [self._key(reader, e, w) for e, w in zip(episodes, words, strict=True)]
        found = [self._kept.open(name, shape, self._stored) for name, shape in zip(names, shapes, strict=True)]
        missing = [i for i, kept in enumerate(found) if kept is None]
        total, done = sum(shapes[i][0] for i in missing), 0
        for i in missing:
            parts = self._computed(reader, episodes[i], words[i])
            self._kept.write(names[i], shapes[i], self._stored, _counted(parts, done, total, on_frames))
            done += shapes[i][0]
            found[i] = self._kept.open(names[i], shapes[i], self._stored)
        if unread := [name for name, kept in zip(names, found, strict=True) if kept is None]:
            raise AssertionError(f"{unread[0]}: was just written and cannot be read")
        return [kept for kept in found if kept is not None]

    def prefix(self, kept: Sequence[NDArray[Any]], words: Words) -> Prefix:
        """The prefix of a batch of frames, each given by its kept features."""
        return self._kind.prefix(self.tensor(self._kind.gather(kept, words)).to(words.tokens.device), words)

    def tensor(self, stored: NDArray[Any]) -> Tensor:
        """Stored features as a tensor of the dtype they were computed in (bf16 is kept as 16-bit integers)."""
        values = torch.from_numpy(stored)
        return values.view(torch.bfloat16) if self.dtype == torch.bfloat16 else values

    def _check_limit(self, shapes: Sequence[tuple[int, ...]]) -> None:
        needed = sum(array_bytes(shape, self._stored) for shape in shapes)
        if needed > self._kept.limit_bytes:
            frames = sum(shape[0] for shape in shapes)
            one = max(int(np.prod(shape[1:])) for shape in shapes) * self._stored.itemsize
            raise SettingsError(
                f"training.features {self._kind_name} needs {one:,} bytes a frame, {needed:,} for {frames} frames in "
                f"{len(shapes)} episodes; training.feature_cache_gb allows {self._kept.limit_bytes:,}: raise it, or "
                'keep less with training.features = "embeddings" or "off"'
            )

    def _key(self, reader: EpisodeReader, episode: Episode, words: Words) -> str:
        videos = {}
        for camera in self.cameras:
            path, *span = reader.source(episode, camera)
            if path not in self._files:
                with path.open("rb") as file:
                    self._files[path] = hashlib.file_digest(file, "sha256").hexdigest()
            videos[camera] = [self._files[path], *span]
        parts = {
            "kind": self._kind_name,
            "words": self._kind.depends_on(words),
            "frozen": self._frozen,
            "videos": videos,
            "times": hashlib.sha256(episode.timestamps.tobytes()).hexdigest(),
            "resize": self.policy.config.resize_imgs_with_padding,
            "dtype": str(self.dtype),
            "device": str(self.policy.config.device),
            "versions": [version(package) for package in ("torch", "lerobot", "transformers")],
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=False).encode()).hexdigest()

    def _computed(self, reader: EpisodeReader, episode: Episode, words: Words) -> Iterator[NDArray[Any]]:
        device = self.policy.config.device
        decoded = {f"{CAMERA_PREFIX}{c}": torch.from_numpy(reader.frames(episode, c)) for c in self.cameras}
        for start in range(0, len(episode.timestamps), _FRAMES_AT_ONCE):
            at = slice(start, start + _FRAMES_AT_ONCE)
            images = {k: v[at].to(device).float() / 255 for k, v in decoded.items()}
            features = self._kind.compute(images, Words(words.tokens[at], words.mask[at], words.lengths[at])).cpu()
            yield (features.view(torch.int16) if features.dtype == torch.bfloat16 else features).numpy()


def _counted(
    parts: Iterator[NDArray[Any]], done: int, total: int, on_frames: FramesListener | None
) -> Iterator[NDArray[Any]]:
    for part in parts:
        yield part
        done += len(part)
        if on_frames:
            on_frames(done, total)

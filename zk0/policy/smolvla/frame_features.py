"""The two kinds of features that are cached of a frame: image embeddings, or the prefix's keys and values."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zk0.policy.smolvla.prefix import Prefix, embed_frames, encode_prefix, prefix_geometry

FeatureKind = Literal["embeddings", "kv"]
"""`embeddings`: outputs of the connector, the language model runs in every step; `kv`: keys and values of all layers,
about 12 times the bytes, the language model does not run at all."""


@dataclass(frozen=True)
class TokenizedTasks:
    """The tokenized tasks of some frames, padded on the right."""

    tokens: Tensor
    """(frames, length) token ids."""
    mask: Tensor
    """(frames, length) bool: False where padded."""
    lengths: NDArray[np.int64]
    """(frames,) on the CPU, so that cutting a batch to its longest task does not wait for the GPU."""

    def cpu(self) -> "TokenizedTasks":
        """The same tasks in the host's memory."""
        return TokenizedTasks(self.tokens.cpu(), self.mask.cpu(), self.lengths)

    @staticmethod
    def from_batch(tokens: Tensor, mask: Tensor) -> "TokenizedTasks":
        """Tokens and mask as a policy's preprocessor returns them."""
        return TokenizedTasks(tokens, mask, mask.sum(dim=1).cpu().numpy())

    def __getitem__(self, frames: Sequence[int] | slice) -> "TokenizedTasks":
        """The tasks of some frames, cut to the longest of them."""
        lengths = self.lengths[frames]
        at, longest = torch.from_numpy(np.arange(len(self.lengths))[frames]), int(lengths.max())
        return TokenizedTasks(self.tokens[at, :longest], self.mask[at, :longest], lengths)


class FrameFeatures(Protocol):
    """What is cached of each frame, and how to build a prefix from it."""

    def frame_shape(self, tasks: TokenizedTasks) -> tuple[int, ...]:
        """Shape of one frame's features."""

    def task_key(self, tasks: TokenizedTasks) -> str:
        """What the features depend on besides the images: a digest of the tasks, or an empty string."""

    def compute(self, images: dict[str, Tensor], tasks: TokenizedTasks) -> Tensor:
        """Features (frames, *frame_shape) in the dtype of the vision-language model."""

    def fill_batch(self, batch: NDArray[Any], frames: Sequence[NDArray[Any]]) -> None:
        """Write the features of single frames, which may be of several episodes, to `batch` (frames, *frame_shape)."""

    def build_prefix(self, features: Tensor, tasks: TokenizedTasks) -> Prefix:
        """The prefix of a batch of frames."""


@dataclass(frozen=True)
class EmbeddingFeatures:
    """Connector outputs (cameras, tokens, width): the language model runs in every step, without a graph."""

    policy: Any
    cameras: int

    def frame_shape(self, tasks: TokenizedTasks) -> tuple[int, ...]:
        """(cameras, tokens, width)."""
        geometry = prefix_geometry(self.policy)
        return (self.cameras, geometry.image_tokens, geometry.width)

    def task_key(self, tasks: TokenizedTasks) -> str:
        """Empty: image embeddings do not depend on the task."""
        return ""

    def compute(self, images: dict[str, Tensor], tasks: TokenizedTasks) -> Tensor:
        """Run vision encoder and connector."""
        return embed_frames(self.policy, images)

    def fill_batch(self, batch: NDArray[Any], frames: Sequence[NDArray[Any]]) -> None:
        """Copy each frame."""
        np.stack(frames, out=batch)

    def build_prefix(self, features: Tensor, tasks: TokenizedTasks) -> Prefix:
        """Run the language model on embeddings and tasks."""
        return encode_prefix(self.policy, features, tasks.tokens, tasks.mask)


@dataclass(frozen=True)
class KeyValueFeatures:
    """Keys and values (layers, 2, tokens, kv heads, head dim) of images and task: only the state token runs."""

    policy: Any
    cameras: int

    def frame_shape(self, tasks: TokenizedTasks) -> tuple[int, ...]:
        """(layers, 2, tokens, kv heads, head dim); the tokens are those of all images and of the longest task."""
        geometry = prefix_geometry(self.policy)
        tokens = self.cameras * geometry.image_tokens + tasks.tokens.shape[1]
        return (geometry.layers, 2, tokens, geometry.kv_heads, geometry.head_dim)

    def task_key(self, tasks: TokenizedTasks) -> str:
        """SHA-256 of tokens and mask."""
        content = tasks.tokens.cpu().numpy().tobytes() + tasks.mask.cpu().numpy().tobytes()
        return hashlib.sha256(content).hexdigest()

    def compute(self, images: dict[str, Tensor], tasks: TokenizedTasks) -> Tensor:
        """Run vision encoder, connector and language model."""
        return encode_prefix(self.policy, embed_frames(self.policy, images), tasks.tokens, tasks.mask).stack()

    def fill_batch(self, batch: NDArray[Any], frames: Sequence[NDArray[Any]]) -> None:
        """Cut or pad each frame's tokens from the longest task of its episode to the longest task of the batch."""
        for row, frame in zip(batch, frames, strict=True):
            tokens = min(frame.shape[2], row.shape[2])
            row[:, :, :tokens] = frame[:, :, :tokens]
            row[:, :, tokens:] = 0

    def build_prefix(self, features: Tensor, tasks: TokenizedTasks) -> Prefix:
        """Unstack keys and values; nothing is computed."""
        images = torch.ones_like(tasks.mask[:, :1]).expand(-1, features.shape[3] - tasks.mask.shape[1])
        return Prefix.unstack(features, torch.cat([images, tasks.mask], dim=1))


FEATURE_KINDS: dict[FeatureKind, type[EmbeddingFeatures] | type[KeyValueFeatures]] = {
    "embeddings": EmbeddingFeatures,
    "kv": KeyValueFeatures,
}

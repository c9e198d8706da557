"""Training and evaluation frames of one data set, ready for the policy: normalised, tokenised, in batches."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zk0.records import ACTION, CAMERA_PREFIX, STATE
from zk0.robot.dataset import EpisodeReader, action_chunks, open_dataset
from zk0.robot.prefix import Prefix, flow_matching_losses
from zk0.training.features import FeatureCache, FramesListener, Words

TOKENS, TOKEN_MASK, PADDING = "observation.language.tokens", "observation.language.attention_mask", "action_is_pad"


class Examples(Protocol):
    """Frames that a policy can be trained on."""

    frames: int
    actions_counted: NDArray[np.int64]
    """(frames,) actions of each frame's chunk that are not padding."""

    def loss(self, policy: Any, indices: Sequence[int], noise: Tensor, time: Tensor) -> Tensor:
        """The policy's own loss (scalar) on some frames; padding after an episode's end does not count."""


class CachedExamples:
    """Frames whose frozen part was computed once: the loss runs the action expert only (and, with embeddings, the
    language model without a graph)."""

    def __init__(
        self,
        reader: EpisodeReader,
        episodes: Sequence[int],
        policy: Any,
        preprocessor: Any,
        cache: FeatureCache,
        on_frames: FramesListener | None = None,
    ) -> None:
        read = reader.read(episodes)
        chunks, padding = action_chunks(read, policy.config.chunk_size)
        batch = preprocessor(
            {
                STATE: torch.from_numpy(np.concatenate([e.states for e in read])),
                ACTION: torch.from_numpy(chunks),
                "task": [task for e in read for task in e.tasks],
            }
        )
        self.cameras = cache.cameras
        self.frames = len(padding)
        self.states, self.actions = batch[STATE], batch[ACTION]
        self.words = Words.of(batch[TOKENS], batch[TOKEN_MASK])
        self.padding = torch.from_numpy(padding).to(self.states.device)
        self.actions_counted = (~padding).sum(axis=1)
        self.episode_of_frame = np.repeat([e.index for e in read], [len(e.states) for e in read])
        self.frame_in_episode = np.concatenate([np.arange(len(e.states)) for e in read])
        self.raw_chunks = chunks
        ends = np.cumsum([len(e.states) for e in read])
        spans = [slice(int(end) - len(e.states), int(end)) for end, e in zip(ends, read, strict=True)]
        self._features = cache.episodes(reader, read, [self.words[span] for span in spans], on_frames)
        self._cache = cache
        self._at = [(i, j) for i, e in enumerate(read) for j in range(len(e.states))]

    def prefix(self, indices: Sequence[int]) -> Prefix:
        """What the frozen part says of some frames."""
        kept = [self._features[e][t] for e, t in (self._at[i] for i in indices)]
        return self._cache.prefix(kept, self.words[indices])

    def losses(self, policy: Any, indices: Sequence[int], noise: Tensor, time: Tensor) -> Tensor:
        """Squared errors (batch, chunk, joints), zero where padded."""
        at = torch.as_tensor(indices)
        losses = flow_matching_losses(policy, self.prefix(indices), self.states[at], self.actions[at], noise, time)
        return losses[:, :, : self.actions.shape[-1]] * (~self.padding[at]).unsqueeze(-1)

    def loss(self, policy: Any, indices: Sequence[int], noise: Tensor, time: Tensor) -> Tensor:
        """The policy's own loss (scalar) on some frames; padding after an episode's end does not count."""
        losses = self.losses(policy, indices, noise, time)
        counted = (~self.padding[torch.as_tensor(indices)]).sum() * losses.shape[-1]
        return losses.sum() / counted.clamp_min(1)


class DecodedExamples:
    """Frames decoded by lerobot each time, through `policy.forward`: the plain way, for image augmentation."""

    def __init__(
        self, root: Path, episodes: Sequence[int], policy: Any, preprocessor: Any, rename_map: Mapping[str, str]
    ) -> None:
        stored_action = next((old for old, new in rename_map.items() if new == ACTION), ACTION)
        self._rename = {**rename_map, f"{stored_action}_is_pad": PADDING}
        self._pre = preprocessor
        self._data = open_dataset(root, episodes, stored_action, policy.config.chunk_size)
        self.frames = len(self._data)
        episode = np.asarray(self._data.hf_dataset.with_format("numpy")["episode_index"][:])
        ends = np.append(np.flatnonzero(np.diff(episode)) + 1, len(episode))
        left = np.repeat(ends, np.diff(ends, prepend=0)) - np.arange(len(episode))
        self.actions_counted = np.minimum(policy.config.chunk_size, left)

    def loss(self, policy: Any, indices: Sequence[int], noise: Tensor, time: Tensor) -> Tensor:
        """The policy's own loss (scalar) on some frames; padding after an episode's end does not count."""
        batch = torch.utils.data.default_collate([self._item(i) for i in indices])
        loss, _ = policy.forward(self._pre(batch), noise=noise, time=time)
        return loss

    def _item(self, index: int) -> dict[str, Any]:
        item = {self._rename.get(k, k): v for k, v in self._data[index].items()}
        wanted = (STATE, ACTION, PADDING, "task")
        return {k: v for k, v in item.items() if k in wanted or k.startswith(CAMERA_PREFIX)}

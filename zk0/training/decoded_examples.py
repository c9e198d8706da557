"""Frames of one dataset that are decoded in every step, for any kind of policy."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zk0.data.episode_reader import EpisodeReader, action_chunks, open_lerobot_dataset
from zk0.policy.kinds import kind_of
from zk0.policy.policy_kind import Draws
from zk0.records import ACTION, CAMERA_PREFIX, STATE
from zk0.training.staging import CopyPlan

_PADDING = "action_is_pad"


class DecodedExamples:
    """Frames that LeRobot decodes in every step and the policy's own `forward` evaluates, as `lerobot-train` does.

    Args:
        root: the dataset's folder.
        episodes: indices of the episodes.
        policy: decides the length of a chunk.
        preprocessor: normalizes and tokenizes.
        rename_map: keys of the dataset -> keys of the policy.
    """

    def __init__(
        self, root: Path, episodes: Sequence[int], policy: Any, preprocessor: Any, rename_map: Mapping[str, str]
    ) -> None:
        kind, stored = kind_of(policy), {new: old for old, new in rename_map.items()}
        window = kind.example_window(policy)
        offsets = {stored.get(ACTION, ACTION): window.actions}
        if window.observations is not None:
            seen = (STATE, *policy.config.image_features)
            offsets |= {stored.get(key, key): window.observations for key in seen}
        self._rename = {**rename_map, f"{stored.get(ACTION, ACTION)}_is_pad": _PADDING}
        self._preprocessor = preprocessor
        self._dataset = open_lerobot_dataset(root, episodes, offsets)
        self.frames = len(self._dataset)
        self.episode_of_frame = np.asarray(self._dataset.hf_dataset.with_format("numpy")["episode_index"][:])
        read = EpisodeReader(root, rename_map).read(list(dict.fromkeys(self.episode_of_frame.tolist())))
        self.frame_in_episode = np.concatenate([np.arange(len(e.states)) for e in read])
        self.raw_chunks, padding = action_chunks(read, kind.predicted_actions(policy))
        self.padding = torch.from_numpy(padding)
        self.action_counts = np.concatenate([_count_actions(len(e.states), window.actions) for e in read])
        there = {self._rename.get(key, key) for key in self._dataset.meta.camera_keys}
        self.cameras = tuple(k.removeprefix(CAMERA_PREFIX) for k in policy.config.image_features if k in there)
        self._wanted = {STATE, ACTION, _PADDING, "task", *(f"{CAMERA_PREFIX}{camera}" for camera in self.cameras)}

    def loss(self, policy: Any, indices: Sequence[int], draws: Draws) -> Tensor:
        """As `Examples.loss`."""
        return self.staged_loss(policy, self._batch(indices), draws)

    def stage(self, indices: Sequence[int], copies: CopyPlan) -> Mapping[str, Any]:
        """As `StageableExamples.stage`: the frames are decoded, and copied by the policy's preprocessor."""
        return self._batch(indices)

    def staged_loss(self, policy: Any, staged: Mapping[str, Any], draws: Draws) -> Tensor:
        """As `StageableExamples.staged_loss`."""
        return kind_of(policy).loss(policy, staged, draws)

    def score_frames(self, policy: Any, indices: Sequence[int], draws: Draws) -> tuple[Tensor, Tensor]:
        """As `EvaluationExamples.score_frames`: a frame's loss counts for each of its actions that are not padding."""
        losses, predicted = kind_of(policy).score(policy, self._batch(indices), draws)
        counts = (~self.padding[torch.as_tensor(indices)]).sum(dim=1)
        return losses * counts * self.raw_chunks.shape[-1], predicted

    def predict_frames(self, policy: Any, indices: Sequence[int], draws: Draws) -> Tensor:
        """As `EvaluationExamples.predict_frames`."""
        return kind_of(policy).predict(policy, self._batch(indices), draws)

    def _batch(self, indices: Sequence[int]) -> dict[str, Any]:
        items = torch.utils.data.default_collate([self._item(i) for i in indices])
        batch: dict[str, Any] = self._preprocessor(items)
        return batch

    def _item(self, index: int) -> dict[str, Any]:
        """One frame with the policy's keys only."""
        item = {self._rename.get(k, k): v for k, v in self._dataset[index].items()}
        return {key: value for key, value in item.items() if key in self._wanted}


def _count_actions(frames: int, offsets: Sequence[int]) -> NDArray[np.int64]:
    """For each frame of an episode: how many of the actions at these offsets are inside the episode."""
    at = np.arange(frames)[:, None] + np.asarray(offsets)
    counts: NDArray[np.int64] = ((at >= 0) & (at < frames)).sum(axis=1)
    return counts

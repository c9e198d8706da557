"""Frames of one dataset that are decoded in every step, for any kind of policy."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zk0.data.episode_reader import EpisodeReader, action_chunks, offset_frames
from zk0.data.random_frames import RandomFrames
from zk0.policy.kinds import kind_of
from zk0.policy.policy_kind import Draws
from zk0.records import ACTION, CAMERA_PREFIX, STATE
from zk0.training.staging import CopyPlan, copy_plan

_PADDING = "action_is_pad"


class DecodedExamples:
    """Frames that are decoded in every step and that the policy's own `forward` evaluates, as `lerobot-train` does.

    Batches are those of LeRobot's dataset and its default collation.

    Args:
        root: the dataset's folder.
        episodes: indices of the episodes.
        policy: decides which actions and observations around a frame belong to it.
        preprocessor: normalizes and tokenizes.
        rename_map: keys of the dataset -> keys of the policy.
    """

    def __init__(
        self, root: Path, episodes: Sequence[int], policy: Any, preprocessor: Any, rename_map: Mapping[str, str]
    ) -> None:
        kind, reader = kind_of(policy), EpisodeReader(root, rename_map)
        self._read = reader.read(sorted(set(episodes)))
        self._window, self._preprocessor = kind.example_window(policy), preprocessor
        lengths = [len(e.states) for e in self._read]
        self._positions = [(number, frame) for number, length in enumerate(lengths) for frame in range(length)]
        self.frames = len(self._positions)
        self.episode_of_frame = np.repeat([e.index for e in self._read], lengths)
        self.frame_in_episode = np.concatenate([np.arange(length) for length in lengths])
        self.raw_chunks, padding = action_chunks(self._read, kind.predicted_actions(policy))
        self.padding = torch.from_numpy(padding)
        self.action_counts = np.concatenate([self._count_actions(length) for length in lengths])
        self.cameras = tuple(k.removeprefix(CAMERA_PREFIX) for k in policy.config.image_features if reader.has_key(k))
        self._images = RandomFrames(reader, self._read, self.cameras)
        self._copies = copy_plan(str(policy.config.device))

    def loss(self, policy: Any, indices: Sequence[int], draws: Draws) -> Tensor:
        """As `Examples.loss`."""
        return self.staged_loss(policy, self._batch(indices), draws)

    def stage(self, indices: Sequence[int], copies: CopyPlan) -> Mapping[str, Any]:
        """As `StageableExamples.stage`: the frames are decoded by several threads."""
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
        """The policy's input of some frames, on its device."""
        places = [self._positions[i] for i in indices]
        actions, padding = zip(*(self._actions(*place) for place in places), strict=True)
        batch: dict[str, Any] = {
            ACTION: torch.from_numpy(np.stack(actions)),
            _PADDING: torch.from_numpy(np.stack(padding)),
            "task": [self._read[number].tasks[frame] for number, frame in places],
            **self._observations(places),
        }
        prepared: dict[str, Any] = self._preprocessor(batch)
        return prepared

    def _count_actions(self, frames: int) -> NDArray[np.int64]:
        """For each frame of an episode: how many actions of its window are inside the episode."""
        _, outside = offset_frames(frames, np.arange(frames)[:, None], self._window.actions)
        return np.asarray((~outside).sum(axis=1))

    def _actions(self, number: int, frame: int) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """The actions of a frame's window (steps, joints), and which of them are padding."""
        actions = self._read[number].actions
        at, outside = offset_frames(len(actions), frame, self._window.actions)
        return actions[at], outside

    def _observations(self, places: Sequence[tuple[int, int]]) -> dict[str, Tensor]:
        """States and images of some frames, with an axis of time if the policy asks for one."""
        offsets = self._window.observations or (0,)
        seen = [offset_frames(len(self._read[number].states), t, offsets)[0] for number, t in places]
        times = () if self._window.observations is None else (len(offsets),)
        flat = [(number, int(t)) for (number, _), at in zip(places, seen, strict=True) for t in at]

        def shaped(values: NDArray[Any]) -> NDArray[Any]:
            return values.reshape(len(places), *times, *values.shape[1:])

        states = torch.from_numpy(shaped(np.stack([self._read[number].states[t] for number, t in flat])))
        images = {f"{CAMERA_PREFIX}{c}": torch.from_numpy(shaped(self._images.read(c, flat))) for c in self.cameras}
        return {STATE: states} | {key: self._unit_range(image) for key, image in images.items()}

    def _unit_range(self, images: Tensor) -> Tensor:
        """Bytes as numbers in 0..1 on the policy's device, in LeRobot's bits."""
        on_device = self._copies.to_device(images).float()
        return on_device.div_(torch.full((), 255.0, device=on_device.device))  # by a number, a GPU would multiply

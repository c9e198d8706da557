"""What training and evaluation need of the frames of a dataset; `CachedExamples` and `DecodedExamples` implement it."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from zk0.policy.policy_kind import Draws
from zk0.training.staging import CopyPlan


class Examples(Protocol):
    """Frames that a policy can be trained on."""

    frames: int
    action_counts: NDArray[np.int64]
    """(frames,) number of each frame's actions that are not padding: its weight in the loss of a batch."""

    def loss(self, policy: Any, indices: Sequence[int], draws: Draws) -> Tensor:
        """The policy's own loss (scalar) of some frames.

        Args:
            policy: its weights count.
            indices: frames of the batch.
            draws: of the policy's kind, for training.
        """


@runtime_checkable
class StageableExamples(Examples, Protocol):
    """Frames that a thread can bring to the policy's device before they are needed."""

    def stage(self, indices: Sequence[int], copies: CopyPlan) -> Mapping[str, Any]:
        """What the loss of some frames needs besides the policy, on the policy's device; a copy may not have ended."""

    def staged_loss(self, policy: Any, staged: Mapping[str, Any], draws: Draws) -> Tensor:
        """As `Examples.loss`, of frames that `stage` returned."""


class EvaluationExamples(Protocol):
    """Frames that a policy can be evaluated on."""

    cameras: tuple[str, ...]
    episode_of_frame: NDArray[np.int64]
    """(frames,) episode of each frame, as stored in the dataset."""
    frame_in_episode: NDArray[np.int64]
    """(frames,) index of each frame in its episode."""
    padding: Tensor
    """(frames, chunk) bool: True after the episode's end."""
    raw_chunks: NDArray[np.float32]
    """(frames, chunk, joints) in the dataset's units: the actions that a prediction is compared with."""

    def score_frames(self, policy: Any, indices: Sequence[int], draws: Draws) -> tuple[Tensor, Tensor]:
        """The policy's own loss and its predictions on some frames, without a graph.

        Args:
            policy: in evaluation mode.
            indices: of the frames.
            draws: of the policy's kind, for evaluation, on the policy's device.

        Returns:
            (frames,) losses, float64, summed over times, steps that are not padding, and joints; and (frames, chunk,
            joints) predicted actions, normalized.
        """

    def predict_frames(self, policy: Any, indices: Sequence[int], draws: Draws) -> Tensor:
        """Predicted actions (frames, chunk, joints), normalized, with the draws of an evaluation."""

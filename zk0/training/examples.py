"""Training and evaluation frames of one dataset, normalized and tokenized, and the policy's loss on batches of them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zk0.data.episode_reader import EpisodeReader, action_chunks, open_lerobot_dataset
from zk0.policy.smolvla.action_expert import flow_matching_losses, predict_chunk
from zk0.policy.smolvla.frame_features import TokenizedTasks
from zk0.policy.smolvla.prefix import Prefix
from zk0.records import ACTION, CAMERA_PREFIX, STATE
from zk0.training.feature_cache import FeatureCache, FrameProgressCallback
from zk0.training.staging import CopyPlan, copy_plan

TOKENS, TOKEN_MASK, PADDING = "observation.language.tokens", "observation.language.attention_mask", "action_is_pad"


class Examples(Protocol):
    """Frames that a policy can be trained on."""

    frames: int
    action_counts: NDArray[np.int64]
    """(frames,) number of actions of each frame's chunk that are not padding."""

    def loss(self, policy: Any, indices: Sequence[int], noise: Tensor, time: Tensor) -> Tensor:
        """The policy's own loss (scalar): mean over all actions of the frames' chunks that are not padding.

        Args:
            policy: a SmolVLAPolicy.
            indices: frames of the batch.
            noise: (batch, chunk, max_action_dim).
            time: (batch,), in (0, 1].
        """


@runtime_checkable
class StageableExamples(Examples, Protocol):
    """Frames that a thread can bring to the policy's device before they are needed."""

    def stage(self, indices: Sequence[int], copies: CopyPlan) -> Mapping[str, Any]:
        """What the loss of some frames needs besides the policy, on the policy's device; a copy may not have ended."""

    def staged_loss(self, policy: Any, staged: Mapping[str, Any], noise: Tensor, time: Tensor) -> Tensor:
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
    """(frames, chunk, joints) in the dataset's units."""

    def score_frames(self, policy: Any, indices: Sequence[int], noise: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
        """The policy's own loss and its predictions on some frames, without a graph.

        Args:
            policy: a SmolVLAPolicy in evaluation mode.
            indices: of the frames.
            noise: (frames, times + 1, chunk, max_action_dim): a draw for each time, and one for the prediction.
            time: (frames, times), in (0, 1].

        Returns:
            (frames,) squared velocity errors, float64, summed over times, steps that are not padding, and joints; and
            (frames, chunk, joints) predicted actions, normalized.
        """

    def predict_frames(self, policy: Any, indices: Sequence[int], noise: Tensor) -> Tensor:
        """Predicted actions (frames, chunk, joints), normalized, from noise (frames, chunk, max_action_dim)."""


class CachedExamples:
    """Frames with cached features: the loss runs the action expert only (with `embeddings`, the language model too).

    Args:
        reader: reads the dataset.
        episodes: indices of the episodes.
        policy: whose frozen layers compute the features.
        preprocessor: normalizes and tokenizes.
        cache: where the features are stored.
        on_frames: called while missing features are computed.
        every: N: only frames 0, N, 2N, ... of each episode have features; the loss of others cannot be computed.
    """

    def __init__(
        self,
        reader: EpisodeReader,
        episodes: Sequence[int],
        policy: Any,
        preprocessor: Any,
        cache: FeatureCache,
        on_frames: FrameProgressCallback | None = None,
        every: int = 1,
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
        self.states, self.actions = batch[STATE].cpu(), batch[ACTION].cpu()
        """Normalized, in the host's memory: (frames, joints) and (frames, chunk, joints)."""
        on_device = TokenizedTasks.from_batch(batch[TOKENS], batch[TOKEN_MASK])
        self.tasks = on_device.cpu()
        self.padding = torch.from_numpy(padding)
        """(frames, chunk) bool: True after the episode's end."""
        self.action_counts = (~padding).sum(axis=1)
        self.episode_of_frame = np.repeat([e.index for e in read], [len(e.states) for e in read])
        self.frame_in_episode = np.concatenate([np.arange(len(e.states)) for e in read])
        self.raw_chunks = chunks
        """(frames, chunk, joints) in the dataset's units."""
        ends = np.cumsum([len(e.states) for e in read])
        spans = [slice(int(end) - len(e.states), int(end)) for end, e in zip(ends, read, strict=True)]
        tasks = [on_device[slice(span.start, span.stop, every)] for span in spans]
        self._features = cache.episode_features(reader, read, tasks, on_frames, every)
        self._cache, self._every = cache, every
        self._copies = copy_plan(str(policy.config.device))
        self._positions = [(i, j) for i, e in enumerate(read) for j in range(len(e.states))]

    def stage(self, indices: Sequence[int], copies: CopyPlan) -> Mapping[str, Any]:
        """As `StageableExamples.stage`: features, tasks, states, actions and padding of the frames."""
        positions = [self._positions[i] for i in indices]
        if missing := [t for _, t in positions if t % self._every]:
            raise AssertionError(f"frame {missing[0]} has no features: only every {self._every}th frame has")
        at, tasks = torch.as_tensor(indices), self.tasks[indices]
        frames = [self._features[e][t // self._every] for e, t in positions]
        host = {
            "features": self._cache.stack_features(frames, tasks, copies.empty),
            "tokens": tasks.tokens,
            "token_mask": tasks.mask,
            "states": self.states[at],
            "actions": self.actions[at],
            "padding": self.padding[at],
        }
        return {name: copies.to_device(part) for name, part in host.items()} | {"lengths": tasks.lengths}

    def prefix_of_frames(self, indices: Sequence[int]) -> Prefix:
        """The frozen layers' output for some frames, as the action expert takes it."""
        return self._prefix(self.stage(indices, self._copies))

    def elementwise_losses(self, policy: Any, indices: Sequence[int], noise: Tensor, time: Tensor) -> Tensor:
        """Squared errors (batch, chunk, joints), zero where padded."""
        return self._elementwise(policy, self.stage(indices, self._copies), noise, time)

    def score_frames(self, policy: Any, indices: Sequence[int], noise: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
        """As `EvaluationExamples.score_frames`."""
        staged = self.stage(indices, self._copies)
        prefix, states, actions = self._prefix(staged), staged["states"], staged["actions"]
        losses = flow_matching_losses(policy, prefix, states, actions, noise[:, :-1], time)
        total = _masked_sum(losses[..., : self.actions.shape[-1]], ~staged["padding"])
        return total, predict_chunk(policy, prefix, states, noise[:, -1])

    def predict_frames(self, policy: Any, indices: Sequence[int], noise: Tensor) -> Tensor:
        """As `EvaluationExamples.predict_frames`."""
        staged = self.stage(indices, self._copies)
        return predict_chunk(policy, self._prefix(staged), staged["states"], noise)

    def loss(self, policy: Any, indices: Sequence[int], noise: Tensor, time: Tensor) -> Tensor:
        """As `Examples.loss`."""
        return self.staged_loss(policy, self.stage(indices, self._copies), noise, time)

    def staged_loss(self, policy: Any, staged: Mapping[str, Any], noise: Tensor, time: Tensor) -> Tensor:
        """As `StageableExamples.staged_loss`."""
        losses = self._elementwise(policy, staged, noise, time)
        count = (~staged["padding"]).sum() * losses.shape[-1]
        return losses.sum() / count.clamp_min(1)

    def _prefix(self, staged: Mapping[str, Any]) -> Prefix:
        tasks = TokenizedTasks(staged["tokens"], staged["token_mask"], staged["lengths"])
        return self._cache.build_prefix(staged["features"], tasks)

    def _elementwise(self, policy: Any, staged: Mapping[str, Any], noise: Tensor, time: Tensor) -> Tensor:
        prefix, padding = self._prefix(staged), staged["padding"]
        losses = flow_matching_losses(policy, prefix, staged["states"], staged["actions"], noise, time)
        return losses[:, :, : self.actions.shape[-1]] * (~padding).unsqueeze(-1)


class DecodedExamples:
    """Frames that LeRobot decodes in every step and `policy.forward` evaluates: no cache, as `lerobot-train` does.

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
        stored_action = next((old for old, new in rename_map.items() if new == ACTION), ACTION)
        self._rename = {**rename_map, f"{stored_action}_is_pad": PADDING}
        self._preprocessor = preprocessor
        self._dataset = open_lerobot_dataset(root, episodes, stored_action, policy.config.chunk_size)
        self.frames = len(self._dataset)
        self.episode_of_frame = np.asarray(self._dataset.hf_dataset.with_format("numpy")["episode_index"][:])
        read = EpisodeReader(root, rename_map).read(list(dict.fromkeys(self.episode_of_frame.tolist())))
        self.frame_in_episode = np.concatenate([np.arange(len(e.states)) for e in read])
        self.raw_chunks, padding = action_chunks(read, policy.config.chunk_size)
        self.padding = torch.from_numpy(padding)
        self.action_counts = (~padding).sum(axis=1)
        stored = {self._rename.get(key, key) for key in self._dataset.meta.camera_keys}
        self.cameras = tuple(k.removeprefix(CAMERA_PREFIX) for k in policy.config.image_features if k in stored)

    def loss(self, policy: Any, indices: Sequence[int], noise: Tensor, time: Tensor) -> Tensor:
        """As `Examples.loss`."""
        return self.staged_loss(policy, self._batch(indices), noise, time)

    def stage(self, indices: Sequence[int], copies: CopyPlan) -> Mapping[str, Any]:
        """As `StageableExamples.stage`: the frames are decoded, and copied by the policy's preprocessor."""
        return self._batch(indices)

    def staged_loss(self, policy: Any, staged: Mapping[str, Any], noise: Tensor, time: Tensor) -> Tensor:
        """As `StageableExamples.staged_loss`."""
        loss, _ = policy.forward(dict(staged), noise=noise, time=time)
        return loss

    @torch.no_grad()
    def score_frames(self, policy: Any, indices: Sequence[int], noise: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
        """As `EvaluationExamples.score_frames`, by the policy's own `forward` and `predict_action_chunk`."""
        batch = self._batch(indices)
        joints, counts = self.raw_chunks.shape[-1], torch.from_numpy(self.action_counts[list(indices)])
        total = torch.zeros(len(indices), dtype=torch.float64)
        for draw in range(time.shape[1]):
            losses, _ = policy.forward(dict(batch), noise=noise[:, draw], time=time[:, draw], reduction="none")
            total += losses.cpu().double() * counts * joints
        return total, self._predict(policy, batch, noise[:, -1])

    @torch.no_grad()
    def predict_frames(self, policy: Any, indices: Sequence[int], noise: Tensor) -> Tensor:
        """As `EvaluationExamples.predict_frames`."""
        return self._predict(policy, self._batch(indices), noise)

    def _predict(self, policy: Any, batch: dict[str, Any], noise: Tensor) -> Tensor:
        chunk: Tensor = policy.predict_action_chunk(dict(batch), noise=noise)
        policy.reset()
        return chunk

    def _batch(self, indices: Sequence[int]) -> dict[str, Any]:
        items = torch.utils.data.default_collate([self._item(i) for i in indices])
        batch: dict[str, Any] = self._preprocessor(items)
        return batch

    def _item(self, index: int) -> dict[str, Any]:
        """One frame with the policy's keys only."""
        item = {self._rename.get(k, k): v for k, v in self._dataset[index].items()}
        wanted = (STATE, ACTION, PADDING, "task")
        return {k: v for k, v in item.items() if k in wanted or k.startswith(CAMERA_PREFIX)}


def _masked_sum(losses: Tensor, valid: Tensor) -> Tensor:
    """(frames,) sums of losses (frames, times, steps, joints) over times, steps that are not padding, and joints."""
    return (losses * valid[:, None, :, None]).double().sum(dim=(1, 2, 3)).cpu()

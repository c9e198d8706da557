"""Frames of one dataset with cached features of SmolVLA's frozen layers."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zk0.data.episode_reader import EpisodeReader, action_chunks
from zk0.policy.policy_kind import Draws
from zk0.policy.smolvla.action_expert import flow_matching_losses, predict_chunk
from zk0.policy.smolvla.draws import CHUNK_NOISE, NOISE, TIME
from zk0.policy.smolvla.frame_features import TokenizedTasks
from zk0.policy.smolvla.prefix import Prefix
from zk0.records import ACTION, STATE
from zk0.training.feature_cache import FeatureCache, FrameProgressCallback
from zk0.training.staging import CopyPlan, copy_plan

_TOKENS, _TOKEN_MASK = "observation.language.tokens", "observation.language.attention_mask"


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
        on_device = TokenizedTasks.from_batch(batch[_TOKENS], batch[_TOKEN_MASK])
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

    def elementwise_losses(self, policy: Any, indices: Sequence[int], draws: Draws) -> Tensor:
        """Squared errors (batch, chunk, joints), zero where padded."""
        return self._elementwise(policy, self.stage(indices, self._copies), draws)

    def score_frames(self, policy: Any, indices: Sequence[int], draws: Draws) -> tuple[Tensor, Tensor]:
        """As `EvaluationExamples.score_frames`: squared velocity errors; what the times share is computed once."""
        staged = self.stage(indices, self._copies)
        prefix, states, actions = self._prefix(staged), staged["states"], staged["actions"]
        losses = flow_matching_losses(policy, prefix, states, actions, draws[NOISE], draws[TIME])
        total = _masked_sum(losses[..., : self.actions.shape[-1]], ~staged["padding"])
        return total, predict_chunk(policy, prefix, states, draws[CHUNK_NOISE])

    def predict_frames(self, policy: Any, indices: Sequence[int], draws: Draws) -> Tensor:
        """As `EvaluationExamples.predict_frames`."""
        staged = self.stage(indices, self._copies)
        return predict_chunk(policy, self._prefix(staged), staged["states"], draws[CHUNK_NOISE])

    def loss(self, policy: Any, indices: Sequence[int], draws: Draws) -> Tensor:
        """As `Examples.loss`."""
        return self.staged_loss(policy, self.stage(indices, self._copies), draws)

    def staged_loss(self, policy: Any, staged: Mapping[str, Any], draws: Draws) -> Tensor:
        """As `StageableExamples.staged_loss`: the mean over all actions that are not padding."""
        losses = self._elementwise(policy, staged, draws)
        count = (~staged["padding"]).sum() * losses.shape[-1]
        return losses.sum() / count.clamp_min(1)

    def _prefix(self, staged: Mapping[str, Any]) -> Prefix:
        tasks = TokenizedTasks(staged["tokens"], staged["token_mask"], staged["lengths"])
        return self._cache.build_prefix(staged["features"], tasks)

    def _elementwise(self, policy: Any, staged: Mapping[str, Any], draws: Draws) -> Tensor:
        prefix, padding = self._prefix(staged), staged["padding"]
        losses = flow_matching_losses(policy, prefix, staged["states"], staged["actions"], draws[NOISE], draws[TIME])
        return losses[:, :, : self.actions.shape[-1]] * (~padding).unsqueeze(-1)


def _masked_sum(losses: Tensor, valid: Tensor) -> Tensor:
    """(frames,) sums of losses (frames, times, steps, joints) over times, steps that are not padding, and joints."""
    return (losses * valid[:, None, :, None]).double().sum(dim=(1, 2, 3)).cpu()

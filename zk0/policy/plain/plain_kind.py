"""The kind of every policy of LeRobot that has none of its own: ACT, Diffusion and others.

Their `forward` returns one number for a batch and draws from torch's global random state. So a frame is evaluated alone
and under a seed of its own: then its loss and its prediction do not depend on which other frames are in its batch.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zk0.errors import PolicyError
from zk0.policy.plain.load_plain import load_plain
from zk0.policy.policy_kind import Draws, ExampleWindow
from zk0.policy.scope import keep_trained
from zk0.policy.trainable import cast_trainable
from zk0.records import ACTION

_SEED = "seed"
"""(frames, times): the seed of each frame's draws, repeated for each time."""
_WITHOUT_DRAWS = ("act",)
"""Types of policy that draw nothing in evaluation mode: one pass gives the loss, and frames are predicted together."""


class PlainKind:
    """Any policy, by its own `forward` and `predict_action_chunk`; implements `zk0.policy.policy_kind.PolicyKind`."""

    def load(self, path: str, config: Any, revision: str | None = None) -> Any:
        """As `load_plain`."""
        return load_plain(path, config, revision)

    def select_trained(self, policy: Any, patterns: Sequence[str]) -> None:
        """Those that the policy's configuration does not freeze, or the ones among them that match."""
        cast_trainable(policy)
        if patterns:
            keep_trained(policy, patterns)

    def example_window(self, policy: Any) -> ExampleWindow:
        """The frames that the policy's configuration asks for."""
        actions, observations = policy.config.action_delta_indices, policy.config.observation_delta_indices
        return ExampleWindow(tuple(actions), None if observations is None else tuple(observations))

    def predicted_actions(self, policy: Any) -> int:
        """The length of a chunk; where the policy cuts its chunks, what is left of them."""
        config = policy.config
        return int(getattr(config, "chunk_size", None) or config.n_action_steps)

    def set_training(self, policy: Any) -> None:
        """LeRobot's training mode, but batch normalization keeps its mean and variance, which are not sent."""
        policy.train()
        for module in policy.modules():
            if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
                module.eval()

    def training_draws(self, policy: Any, count: int, generator: torch.Generator) -> Draws:
        """Nothing: `forward` draws from torch's global random state."""
        return {}

    def evaluation_draws(self, policy: Any, seed: int, frames: Sequence[tuple[int, int]], times: int) -> Draws:
        """A seed for each frame."""
        seeds = [frame_seed(seed, episode, frame) for episode, frame in frames]
        return {_SEED: torch.tensor(seeds)[:, None].expand(-1, times)}

    def rollout_draws(self, policy: Any, generators: Sequence[torch.Generator]) -> Draws:
        """A seed from each attempt's generator."""
        seeds = [torch.randint(2**62, (1,), generator=generator) for generator in generators]
        return {_SEED: torch.stack(seeds)}

    def loss(self, policy: Any, batch: Mapping[str, Any], draws: Draws) -> Tensor:
        """The loss that `lerobot-train` descends."""
        _check_image_sizes(policy, batch)
        loss, _ = policy.forward(dict(batch))
        return loss

    @torch.no_grad()
    def score(self, policy: Any, batch: Mapping[str, Any], draws: Draws) -> tuple[Tensor, Tensor]:
        """As `PolicyKind.score`; the times of a frame are one pass with as many copies of it."""
        _check_image_sizes(policy, batch)
        times = draws[_SEED].shape[1]
        copies = 1 if policy.config.type in _WITHOUT_DRAWS else times
        losses = []
        for row, seed in enumerate(draws[_SEED][:, 0].tolist()):
            with _seeded(policy, seed):
                losses.append(policy.forward(_choose_frames(batch, [row] * copies))[0])
        return torch.stack(losses).cpu().double() * times, self.predict(policy, batch, draws)

    @torch.no_grad()
    def predict(self, policy: Any, batch: Mapping[str, Any], draws: Draws) -> Tensor:
        """As `PolicyKind.predict`."""
        _check_image_sizes(policy, batch)
        rows = list(range(len(draws[_SEED])))
        together = [rows] if policy.config.type in _WITHOUT_DRAWS else [[row] for row in rows]
        chunks = []
        for frames in together:
            policy.reset()
            with _seeded(policy, int(draws[_SEED][frames[0], 0])):
                chunks.append(policy.predict_action_chunk(_choose_frames(batch, frames)))
        policy.reset()
        return self._check_chunks(policy, torch.cat(chunks))

    def _check_chunks(self, policy: Any, chunks: Tensor) -> Tensor:
        expected = (self.predicted_actions(policy), policy.config.output_features[ACTION].shape[0])
        if tuple(chunks.shape[1:]) != expected:
            raise PolicyError(
                f"a policy of type {policy.config.type} predicts chunks of shape {tuple(chunks.shape[1:])}, expected "
                f"{expected} (actions, joints): zk0 cannot evaluate this type"
            )
        return chunks


def frame_seed(seed: int, episode: int, frame: int) -> int:
    """A seed for one frame of one episode.

    >>> frame_seed(42, 0, 1) == frame_seed(42, 0, 1) != frame_seed(42, 1, 0)
    True
    """
    return int(np.random.Philox(key=[seed, (episode << 32) | frame]).random_raw()) >> 2


def _check_image_sizes(policy: Any, batch: Mapping[str, Any]) -> None:
    """Check the sizes of images for a Diffusion Policy, which takes all cameras at once.

    Raises:
        PolicyError: cameras have different sizes, or another size than the policy's, which it does not change.
    """
    config = policy.config
    if not hasattr(config, "resize_shape"):
        return
    sizes = {key: tuple(batch[key].shape[-2:]) for key in config.image_features}
    declared = next(iter(config.image_features.values())).shape[-2:]
    found = ", ".join(f"{key} {height} x {width}" for key, (height, width) in sizes.items())
    if len(set(sizes.values())) > 1:
        raise PolicyError(
            f"images of {found} pixels; a policy of type {config.type} needs cameras of one size: record them so, or "
            "leave one out of contract.cameras"
        )
    if config.resize_shape is None and config.crop_shape is None and set(sizes.values()) != {tuple(declared)}:
        raise PolicyError(
            f"images of {found} pixels, expected {declared[0]} x {declared[1]}: this policy of type {config.type} "
            "takes no other size; make it with resize_shape or crop_shape in its configuration (docs/policies.md)"
        )


@contextmanager
def _seeded(policy: Any, seed: int) -> Iterator[None]:
    """Seed torch's global random state, and restore it on exit."""
    device = torch.device(policy.config.device)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def _choose_frames(batch: Mapping[str, Any], rows: Sequence[int]) -> dict[str, Any]:
    """Some frames of a batch: the rows of its tensors and lists; what has no rows is left out."""
    tensors = {key: value[list(rows)] for key, value in batch.items() if isinstance(value, Tensor)}
    return tensors | {key: [value[row] for row in rows] for key, value in batch.items() if isinstance(value, list)}

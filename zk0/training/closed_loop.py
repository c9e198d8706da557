"""A trained policy moves the simulated arm; what it saw and did becomes a video."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from zk0.records import CAMERA_PREFIX, STATE
from zk0.robot.policy import make_processors
from zk0.simulator.environment import Observation, SimulatedArm
from zk0.simulator.rollout import Trajectory, rollout


def act_with(
    policy: Any, preprocessor: Any, postprocessor: Any, seed: int, replan_steps: int
) -> Callable[[Observation], NDArray[np.float32]]:
    """What the policy does next: its first `replan_steps` actions, from noise that the seed decides."""
    generator = torch.Generator().manual_seed(seed)
    shape = (1, policy.config.chunk_size, policy.config.max_action_dim)

    def act(seen: Observation) -> NDArray[np.float32]:
        images = {
            f"{CAMERA_PREFIX}{name}": torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255
            for name, image in seen.images.items()
        }
        batch = preprocessor({STATE: torch.from_numpy(seen.state)[None], "task": [seen.task], **images})
        policy.reset()
        noise = torch.randn(shape, generator=generator).to(policy.config.device)
        chunk = policy.predict_action_chunk(batch, noise=noise)
        return postprocessor(chunk)[0, :replan_steps].numpy()

    return act


def attempt(policy: Any, statistics: Any, arm: SimulatedArm, seed: int, settings: Any) -> Trajectory:
    """One closed-loop attempt."""
    pre, post = make_processors(policy, statistics)
    return rollout(arm, seed, act_with(policy, pre, post, seed, settings.replan_steps), settings.max_steps)

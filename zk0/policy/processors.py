"""The pre- and postprocessor of a policy, with the normalization statistics of the session."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from zk0.errors import PolicyError
from zk0.records import ACTION, STATE, Moments, Statistics


def lerobot_statistics(statistics: Statistics) -> dict[str, dict[str, NDArray[np.float32]]]:
    """Statistics in the form that LeRobot's processors take: arrays (joints,) by feature key and moment."""
    return {
        key: {k: np.asarray(getattr(m, k), dtype=np.float32) for k in ("mean", "std", "min", "max")}
        for key, m in ((STATE, statistics.state), (ACTION, statistics.action))
    }


def make_processors(policy: Any, statistics: Statistics) -> tuple[Any, Any]:
    """LeRobot's preprocessor (tokenize, normalize) and postprocessor (unnormalize) of this policy.

    LeRobot skips normalization silently where the statistics' keys do not match the policy's features (LeRobot issue
    4415). So this function normalizes mean + std, which must give 1, and unnormalizes 1, which must give mean + std.

    Raises:
        PolicyError: the processors do not normalize states and actions to mean 0 and std 1, or do not undo it.
    """
    from lerobot.policies.factory import make_pre_post_processors

    pre, post = make_pre_post_processors(policy.config, dataset_stats=lerobot_statistics(statistics))
    moments = {STATE: _mean_and_std(statistics.state), ACTION: _mean_and_std(statistics.action)}
    normalized = pre({key: (mean + std)[None] for key, (mean, std) in moments.items()} | {"task": [""]})
    restored = {key: normalized[key][0].cpu() * std + mean for key, (mean, std) in moments.items()}
    ones = torch.ones_like(moments[ACTION][0])[None]
    restored["the predicted action"] = post(ones.to(policy.config.device))[0]
    for name, values in restored.items():
        mean, std = moments.get(name, moments[ACTION])
        if not torch.allclose(values, mean + std, rtol=1e-4, atol=1e-4):
            raise PolicyError(
                f"the policy does not normalize {name} with the given statistics: {(mean + std).tolist()} "
                f"comes back as {values.tolist()}; its config.json must map STATE and ACTION to MEAN_STD"
            )
    return pre, post


def _mean_and_std(moments: Moments) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor(moments.mean, dtype=torch.float32), torch.tensor(moments.std, dtype=torch.float32)

"""The pre- and postprocessor of a policy, with the normalization statistics of the session."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from zk0.errors import PolicyError
from zk0.records import ACTION, STATE, Moments, Statistics


def lerobot_statistics(statistics: Statistics, config: Any) -> dict[str, dict[str, NDArray[np.float32]]]:
    """Statistics in the form that LeRobot's processors take: arrays (joints,) by feature key and moment.

    Where the policy normalizes images, theirs are ImageNet's, arrays (3, 1, 1), which `lerobot-train` takes by default.

    Args:
        statistics: of state and action.
        config: of the policy.
    """
    from lerobot.utils.constants import IMAGENET_STATS

    found = {
        key: {k: np.asarray(getattr(m, k), dtype=np.float32) for k in ("mean", "std", "min", "max")}
        for key, m in ((STATE, statistics.state), (ACTION, statistics.action))
    }
    if config.normalization_mapping["VISUAL"].value == "IDENTITY":
        return found
    images = {name: np.asarray(values, dtype=np.float32) for name, values in IMAGENET_STATS.items()}
    return found | dict.fromkeys(config.image_features, images)


@dataclass(frozen=True)
class JointScale:
    """Factor and offset (joints,) that turn normalized values into the dataset's units."""

    factor: NDArray[np.float64]
    offset: NDArray[np.float64]

    def restore(self, normalized: NDArray[np.float64]) -> NDArray[np.float64]:
        """Values (..., joints) in the dataset's units."""
        restored: NDArray[np.float64] = normalized * self.factor + self.offset
        return restored


def action_scale(policy: Any, statistics: Statistics) -> JointScale:
    """How the policy's normalized actions become actions in the dataset's units.

    Raises:
        PolicyError: as `make_processors`.
    """
    return _joint_scale(policy, "ACTION", statistics.action)


def _joint_scale(policy: Any, kind: str, moments: Moments) -> JointScale:
    mode = policy.config.normalization_mapping[kind].value
    if mode == "MEAN_STD":
        return JointScale(np.asarray(moments.std), np.asarray(moments.mean))
    if mode != "MIN_MAX":
        raise PolicyError(f"the policy normalizes {kind} by {mode}; expected MEAN_STD or MIN_MAX in its config.json")
    least, most = np.asarray(moments.min), np.asarray(moments.max)
    if still := [index for index, same in enumerate(most == least) if same]:
        raise PolicyError(
            f"the policy normalizes {kind} by MIN_MAX, and joint {still[0]} of the datasets never moves (always "
            f"{least[still[0]]:g}); leave the joint out, or set MEAN_STD in the policy's config.json"
        )
    return JointScale((most - least) / 2, (most + least) / 2)


def make_processors(policy: Any, statistics: Statistics) -> tuple[Any, Any]:
    """LeRobot's preprocessor (tokenize, normalize) and postprocessor (unnormalize) of this policy.

    LeRobot skips normalization silently where the statistics' keys do not match the policy's features (LeRobot issue
    4415). So this function normalizes what must give 1 (mean + std, or the maximum), and unnormalizes 1.

    Raises:
        PolicyError: the processors do not normalize states and actions by mean and std, or by minimum and maximum, or
            do not undo it.
    """
    from lerobot.policies.factory import make_pre_post_processors

    pre, post = make_pre_post_processors(policy.config, dataset_stats=lerobot_statistics(statistics, policy.config))
    scales = {
        STATE: _as_tensors(_joint_scale(policy, "STATE", statistics.state)),
        ACTION: _as_tensors(action_scale(policy, statistics)),
    }
    normalized = pre({key: (offset + factor)[None] for key, (factor, offset) in scales.items()} | {"task": [""]})
    restored = {key: normalized[key][0].cpu() * factor + offset for key, (factor, offset) in scales.items()}
    ones = torch.ones_like(scales[ACTION][0])[None]
    restored["the predicted action"] = post(ones.to(policy.config.device))[0]
    for name, values in restored.items():
        factor, offset = scales.get(name, scales[ACTION])
        if not torch.allclose(values, offset + factor, rtol=1e-4, atol=1e-4):
            raise PolicyError(
                f"the policy does not normalize {name} with the given statistics: {(offset + factor).tolist()} "
                f"comes back as {values.tolist()}; its config.json must map STATE and ACTION to MEAN_STD or MIN_MAX"
            )
    return pre, post


def _as_tensors(scale: JointScale) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor(scale.factor, dtype=torch.float32), torch.tensor(scale.offset, dtype=torch.float32)

"""A trained policy moves the simulated arm; what it saw and did becomes a video."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from zk0.errors import ReportError
from zk0.folder import SessionFolder, write_whole
from zk0.records import CAMERA_PREFIX, STATE, Checkpoint, Rollout
from zk0.report.frames import Attempt, rollout_frames
from zk0.report.video import write_video
from zk0.robot.policy import make_processors
from zk0.session import Session
from zk0.simulator.environment import Observation, SimulatedArm
from zk0.simulator.rollout import Trajectory, rollout
from zk0.training.judge import Ground, policy_with


def act_with(
    policy: Any, preprocessor: Any, postprocessor: Any, seed: int, replan_steps: int
) -> Callable[[Observation], NDArray[np.float32]]:
    """What the policy does next: its first `replan_steps` actions, from noise that the seed decides."""
    generator = torch.Generator().manual_seed(seed)
    shape = (1, policy.config.chunk_size, policy.config.max_action_dim)

    def act(seen: Observation) -> NDArray[np.float32]:
        images = {
            f"{CAMERA_PREFIX}{name}": torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float() / 255
            for name, image in seen.images.items()
        }
        batch = preprocessor({STATE: torch.from_numpy(seen.state)[None], "task": [seen.task], **images})
        policy.reset()
        noise = torch.randn(shape, generator=generator).to(policy.config.device)
        chunk = policy.predict_action_chunk(batch, noise=noise)
        actions: NDArray[np.float32] = postprocessor(chunk)[0, :replan_steps].numpy()
        return actions

    return act


def roll_out_task(
    session: Session, ground: Ground, folder: Path, checkpoint: Checkpoint, task: str
) -> tuple[Rollout, ...]:
    """One closed-loop attempt a seed at a task of the simulator, each with a video and its result beside it.

    They lie in `evaluate/round_N/<task>/rollout_<seed>.mp4` and `.json`. A video that cannot be made is missing
    from the record and fails nothing.

    Raises:
        SimulatorError: there is no such task, nothing can be rendered, or the policy's actions are not finite.
    """
    policy = policy_with(session, ground.recipe, (folder / checkpoint.path, checkpoint.digest))
    pre, post = make_processors(policy, ground.statistics)
    here = SessionFolder(folder).rollouts(checkpoint.round) / task
    here.mkdir(parents=True, exist_ok=True)
    found = []
    with SimulatedArm(task, session.simulator, render=True) as arm:
        for seed in session.rollout.seeds:
            act = act_with(policy, pre, post, seed, session.rollout.replan_steps)
            seen = rollout(arm, seed, act, session.rollout.max_steps)
            path = here / f"rollout_{seed}.mp4"
            result = Rollout(
                round=checkpoint.round,
                task=task,
                seed=seed,
                success=seen.success,
                steps=seen.steps,
                duration_seconds=seen.duration_seconds,
                fps=seen.fps,
                video=str(path.relative_to(folder)) if _film(seen, session.contract.joints, path) else None,
            )
            write_whole(path.with_suffix(".json"), result.model_dump_json(indent=2))
            found.append(result)
    return tuple(found)


def _film(seen: Trajectory, joints: tuple[str, ...], path: Path) -> bool:
    """Whether the attempt could be filmed."""
    try:
        attempt = Attempt(
            images={name: [o.images[name] for o in seen.observations] for name in seen.observations[0].images},
            states=np.stack([o.state for o in seen.observations]),
            actions=seen.actions,
            joints=joints,
            fps=seen.fps,
            task=seen.observations[0].task,
            seed=seen.seed,
            success=seen.success,
        )
        write_video(path, rollout_frames(attempt), seen.fps)
    except ReportError:
        return False
    return True

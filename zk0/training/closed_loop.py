"""A trained policy moves simulated arms; what it did is kept as numbers, films and a data set."""

import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from zk0.errors import SimulatorError
from zk0.folder import SessionFolder
from zk0.records import CAMERA_PREFIX, STATE, Rollout, RolloutSubject, RoundRecord
from zk0.robot.policy import make_processors
from zk0.session import RolloutSettings, Session, SimulatorSettings
from zk0.simulator.environment import CAMERAS, Observation, SimulatedArm
from zk0.simulator.rollout import Trajectory, rollouts
from zk0.training.attempts import Attempts
from zk0.training.judge import Ground, policy_with
from zk0.training.recordings import SCHEME


@dataclass(frozen=True)
class Actor:
    """A policy with its processors: observations of several arms in, their next actions out."""

    policy: Any
    preprocessor: Any
    postprocessor: Any
    cameras: dict[str, str]
    """Camera of the simulator -> feature key of the policy."""

    def acting(self, replan_steps: int) -> Callable[[Sequence[int], Sequence[Observation]], list[NDArray[np.float32]]]:
        """What the policy does next: its first `replan_steps` actions, from noise that each attempt's seed decides.

        The noise of an attempt does not depend on which others run beside it.
        """
        generators: dict[int, torch.Generator] = {}
        config = self.policy.config

        def act(seeds: Sequence[int], seen: Sequence[Observation]) -> list[NDArray[np.float32]]:
            drawn = [
                torch.randn(
                    config.chunk_size,
                    config.max_action_dim,
                    generator=generators.setdefault(seed, torch.Generator().manual_seed(seed)),
                )
                for seed in seeds
            ]
            self.policy.reset()
            with torch.no_grad():
                chunks = self.policy.predict_action_chunk(self._batch(seen), noise=torch.stack(drawn).to(config.device))
            return list(self.postprocessor(chunks)[:, :replan_steps].float().numpy())

        return act

    def _batch(self, seen: Sequence[Observation]) -> Any:
        images = {
            feature: torch.from_numpy(np.stack([o.images[camera] for o in seen])).permute(0, 3, 1, 2).float() / 255
            for camera, feature in self.cameras.items()
        }
        states = torch.from_numpy(np.stack([o.state for o in seen]))
        return self.preprocessor({STATE: states, "task": [o.task for o in seen], **images})


def attempt_task(
    actor: Actor, task: str, simulator: SimulatorSettings, settings: RolloutSettings, filmed: int
) -> list[Trajectory]:
    """One attempt a seed, side by side; the first `filmed` of them look in every step.

    Raises:
        SimulatorError: there is no such task or camera, nothing can be rendered, or actions are not finite.
    """
    if missing := sorted(actor.cameras.keys() - set(CAMERAS)):
        raise SimulatorError(f"the simulator has no camera {', '.join(missing)}; it has {', '.join(CAMERAS)}")
    seeds = settings.seeds
    with ExitStack() as stack:
        arms = [
            stack.enter_context(SimulatedArm(task, simulator, render=True))
            for _ in range(min(settings.environments, len(seeds)))
        ]
        act = actor.acting(settings.replan_steps)
        return rollouts(arms, seeds, act, settings.max_steps, seeds[:filmed])


def roll_out_task(
    session: Session, ground: Ground, here: SessionFolder, record: RoundRecord, task: str, when: datetime
) -> tuple[Rollout, ...]:
    """The attempts of one round's model at one task, each with its result in `evaluate/round_N/<client or task>/`.

    Those that this very model made before are not made again.

    Raises:
        SimulatorError: there is no such task, nothing can be rendered, or the policy's actions are not finite.
    """
    subject = subject_of(session, record, task)
    folder = here.rollouts(record.round) / (subject.client or task)
    attempts = Attempts(here.path, folder, subject)
    seeds, keep_dataset = session.rollout.seeds, session.rollout.keep_dataset
    keep_dataset = keep_dataset and not attempts.dataset.is_dir()
    if not keep_dataset and (finished := attempts.finished(seeds)) is not None:
        return finished
    policy = policy_with(session, ground.recipe, (here.path / record.checkpoint.path, record.checkpoint.digest))
    cameras = {camera: f"{CAMERA_PREFIX}{camera}" for camera in session.contract.cameras}
    actor = Actor(policy, *make_processors(policy, ground.statistics), cameras)
    films = session.video.rollouts if session.filmed_after(record.round) else 0
    made = attempt_task(actor, task, session.simulator, session.rollout, len(seeds) if keep_dataset else films)
    if keep_dataset:
        attempts.keep_dataset(made)
    return attempts.keep(made, films, session.video.camera_height, when)


def subject_of(session: Session, record: RoundRecord, task: str) -> RolloutSubject:
    """The model of a round at a task, who brought recordings of it, and the loss on those that judge."""
    dataset = f"{SCHEME}{task}"
    brought = [c.name for c in session.members() if c.dataset == dataset]
    losses = [s.policy_loss for s in record.evaluation.sets if s.dataset == dataset] if record.evaluation else []
    if record.client_evaluation:
        losses += [s.score.policy_loss for s in record.client_evaluation.scores if s.client in brought]
    return RolloutSubject(
        round=record.round,
        checkpoint=record.checkpoint.digest,
        task=task,
        client=brought[0] if len(brought) == 1 else None,
        policy_loss=losses[0] if losses else None,
        conditions=conditions_of(session.simulator, session.rollout),
    )


def conditions_of(simulator: SimulatorSettings, rollout: RolloutSettings) -> str:
    """SHA-256 of all that decides an attempt besides policy, task and seed: only equal ones are compared."""
    scene = simulator.model_dump(mode="json", exclude={"episodes", "first_seed"})
    how = {**scene, "max_steps": rollout.max_steps, "replan_steps": rollout.replan_steps}
    return hashlib.sha256(json.dumps(how, sort_keys=True).encode()).hexdigest()

"""Closed-loop rollouts: a policy moves simulated arms, and results, videos and a dataset of its attempts are stored."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from zk0.errors import SimulatorError
from zk0.evaluation.attempt_store import AttemptStore
from zk0.evaluation.global_model import policy_with_weights
from zk0.evaluation.session_setup import SessionSetup
from zk0.policy.kinds import kind_of
from zk0.policy.processors import make_processors
from zk0.records import CAMERA_PREFIX, STATE, Rollout, RolloutSubject, RoundRecord
from zk0.settings.dataset_settings import SimulatorSettings
from zk0.settings.evaluation_settings import RolloutSettings
from zk0.settings.session import Session
from zk0.simulator.arm import IMAGE_VERSION, Observation, SimulatedArm
from zk0.simulator.rollout import ActFunction, Trajectory, open_arms, simulate_attempts
from zk0.simulator.tasks import CAMERAS, SIMULATOR_SCHEME
from zk0.storage.session_folder import SessionFolder


@dataclass(frozen=True)
class PolicyActor:
    """A policy with its processors, which turns observations of several arms into their next actions."""

    policy: Any
    preprocessor: Any
    postprocessor: Any
    cameras: dict[str, str]
    """Camera of the simulator -> feature key of the policy."""

    def act_function(self, replan_steps: int) -> ActFunction:
        """A function that returns the first `replan_steps` actions of the policy's next chunk.

        Each attempt's seed decides the random numbers of its chunks, so an attempt does not depend on which other
        attempts are in the same batch.
        """
        generators: dict[int, torch.Generator] = {}
        kind, device = kind_of(self.policy), self.policy.config.device

        def act(seeds: Sequence[int], observations: Sequence[Sequence[Observation]]) -> list[NDArray[np.float32]]:
            own = [generators.setdefault(seed, torch.Generator().manual_seed(seed)) for seed in seeds]
            draws = {name: one.to(device) for name, one in kind.rollout_draws(self.policy, own).items()}
            chunks = kind.predict(self.policy, self._batch(observations), draws)
            return list(self.postprocessor(chunks)[:, :replan_steps].float().numpy())

        return act

    @property
    def observed_steps(self) -> int:
        """Observations of the last steps that the policy takes."""
        return len(kind_of(self.policy).example_window(self.policy).observations or (0,))

    def _batch(self, observations: Sequence[Sequence[Observation]]) -> Any:
        """The last observations of each attempt, preprocessed; an axis of time only where the policy takes one."""
        pixels = {f: np.stack([[o.images[c] for o in seen] for seen in observations]) for c, f in self.cameras.items()}
        images = {k: torch.from_numpy(v).permute(0, 1, 4, 2, 3).float() / 255 for k, v in pixels.items()}
        parts = {STATE: torch.from_numpy(np.stack([[o.state for o in seen] for seen in observations])), **images}
        if kind_of(self.policy).example_window(self.policy).observations is None:
            parts = {key: part[:, -1] for key, part in parts.items()}
        return self.preprocessor({**parts, "task": [seen[-1].task for seen in observations]})


def run_attempts(
    actor: PolicyActor, task: str, simulator: SimulatorSettings, settings: RolloutSettings, rendered: int
) -> list[Trajectory]:
    """Run one attempt for each of `settings.seeds`, several at a time.

    Args:
        actor: the policy.
        task: of the simulator.
        simulator: cameras, control rate and scene.
        settings: seeds, limit of steps, steps between predictions, attempts at a time.
        rendered: the first `rendered` attempts get images of every step, the others only where the policy predicts.

    Raises:
        SimulatorError: the task or a camera does not exist, images cannot be rendered, or actions are not finite.
    """
    if missing := sorted(actor.cameras.keys() - set(CAMERAS)):
        raise SimulatorError(f"the simulator has no camera {', '.join(missing)}; it has {', '.join(CAMERAS)}")
    seeds = settings.seeds
    count = min(settings.environments, len(seeds))
    with open_arms(SimulatedArm(task, simulator, render=True) for _ in range(count)) as arms:
        act = actor.act_function(settings.replan_steps)
        return simulate_attempts(arms, seeds, act, settings.max_steps, seeds[:rendered], actor.observed_steps)


def roll_out_task(
    session: Session, setup: SessionSetup, session_folder: SessionFolder, record: RoundRecord, task: str, when: datetime
) -> tuple[Rollout, ...]:
    """Roll out the global model of a round at one task; the results of its attempts.

    They are stored in `evaluate/round_N/<client or task>/` of the session folder. Attempts that the same model made
    before are read, not repeated.

    Args:
        session: settings of simulator, rollouts and videos.
        setup: recipe and statistics.
        session_folder: where results and videos are stored, and the weights lie.
        record: of the round.
        task: of the simulator.
        when: names the files.

    Raises:
        SimulatorError: the task does not exist, images cannot be rendered, or actions are not finite.
    """
    subject = rollout_subject(session, record, task)
    folder = session_folder.rollouts(record.round) / (subject.client or task)
    store = AttemptStore(session_folder.path, folder, subject)
    seeds, keep_dataset = session.rollout.seeds, session.rollout.keep_dataset
    keep_dataset = keep_dataset and not store.dataset_folder.is_dir()
    if not keep_dataset and (finished := store.read_finished(seeds)) is not None:
        return finished
    policy = policy_with_weights(
        session, setup.recipe, (session_folder.path / record.checkpoint.path, record.checkpoint.digest)
    )
    cameras = {camera: f"{CAMERA_PREFIX}{camera}" for camera in session.contract.cameras}
    actor = PolicyActor(policy, *make_processors(policy, setup.statistics), cameras)
    rendered = record.round == 0 or session.renders_videos_after(record.round)  # round 0: the arm before training
    videos = session.video.rollouts if rendered else 0
    attempts = run_attempts(actor, task, session.simulator, session.rollout, len(seeds) if keep_dataset else videos)
    if keep_dataset:
        store.store_dataset(attempts)
    return store.store(attempts, videos, session.video.camera_height, when)


def rollout_subject(session: Session, record: RoundRecord, task: str) -> RolloutSubject:
    """The model of a round and the task, with the client whose dataset is of that task and the model's loss on it."""
    dataset = f"{SIMULATOR_SCHEME}{task}"
    owners = [c.name for c in session.local_clients() if c.dataset == dataset]
    losses = [s.policy_loss for s in record.evaluation.sets if s.dataset == dataset] if record.evaluation else []
    if record.client_evaluation:
        losses += [s.score.policy_loss for s in record.client_evaluation.scores if s.client in owners]
    return RolloutSubject(
        round=record.round,
        checkpoint=record.checkpoint.digest,
        task=task,
        client=owners[0] if len(owners) == 1 else None,
        policy_loss=losses[0] if losses else None,
        conditions_digest=conditions_digest(session.simulator, session.rollout),
    )


def conditions_digest(simulator: SimulatorSettings, rollout: RolloutSettings) -> str:
    """SHA-256 of everything that decides an attempt besides policy, task and seed. Only equal ones are compared."""
    scene = simulator.model_dump(mode="json", exclude={"episodes", "first_seed"})
    conditions = {**scene, **rollout.model_dump(include={"max_steps", "replan_steps"}), "images": IMAGE_VERSION}
    return hashlib.sha256(json.dumps(conditions, sort_keys=True).encode()).hexdigest()

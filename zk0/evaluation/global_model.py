"""The global model on the server: its initial weights, its evaluation on unseen data, its checkpoint."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from zk0.data.episode_reader import EpisodeReader
from zk0.errors import CheckpointError
from zk0.evaluation.evaluation_sets import EvaluationProgressCallback, evaluation_examples
from zk0.evaluation.robot_references import session_reference
from zk0.evaluation.scores import composite_score, score_policy
from zk0.evaluation.session_setup import SessionSetup
from zk0.policy.published_config import SMOLVLA_TYPES
from zk0.policy.save_policy import ExtraFiles, save_policy
from zk0.policy.trainable import install_weights, trainable_weights
from zk0.records import CAMERA_PREFIX, Evaluation, PolicyRecipe, RobotReference
from zk0.robot.read_reference import ROBOT_FILE
from zk0.settings.session import Session
from zk0.training.cached_policy import cached_policy
from zk0.training.device import pick_device
from zk0.weights.digests import digest as digest_of
from zk0.weights.digests import open_checked
from zk0.weights.writer import save_weights


def policy_recipe(session: Session) -> PolicyRecipe:
    """The recipe of the session's policy, still without its type and the digest of its frozen weights."""
    return PolicyRecipe(
        path=session.policy.path,
        revision=session.policy.revision,
        cameras=session.contract.cameras,
        joints=len(session.contract.joints),
        seed=session.seed,
        trained=session.training.trained_patterns(),
        personal=session.training.personal,
    )


def build_start_policy(session: Session, target: Path, expected: str | None = None) -> tuple[PolicyRecipe, str, int]:
    """Build the policy and write its trainable weights: the global weights of round 0.

    Args:
        session: the settings.
        target: the file to write.
        expected: the digest that the weights must have, for a session that resumes.

    Returns:
        The complete recipe, the digest of the weights, and the size of the file in bytes.

    Raises:
        PolicyError: the policy cannot be built.
        CheckpointError: the weights do not have the expected digest; then nothing is written.
    """
    recipe = policy_recipe(session)
    policy, frozen = cached_policy(recipe, Path(session.cache_dir), pick_device(session.training.device), rebuild=True)
    weights = trainable_weights(policy)
    if expected not in (None, found := digest_of(weights, session.federation.digest)):
        raise CheckpointError(
            f"{session.policy.path}: initial weights {found[:12]}, this session began with {str(expected)[:12]}"
        )
    digest, size = save_weights(target, weights, algorithm=session.federation.digest)
    found_type = "smolvla" if policy.config.type in SMOLVLA_TYPES else policy.config.type
    return recipe.model_copy(update={"frozen_digest": frozen, "type": found_type}), digest, size


def evaluate_weights(
    session: Session,
    setup: SessionSetup,
    weights: tuple[Path, str],
    round_number: int,
    on_frames: EvaluationProgressCallback | None = None,
) -> Evaluation:
    """Evaluate global weights on every evaluation set.

    Args:
        session: the settings.
        setup: recipe, statistics and evaluation sets.
        weights: path and digest.
        round_number: written into the result.
        on_frames: called while missing features are computed.

    Raises:
        EvaluationError: a number is not finite.
        CheckpointError: the weights do not have the digest.
    """
    started = perf_counter()
    torch.set_num_threads(session.training.torch_threads)
    policy = policy_with_weights(session, setup.recipe, weights)
    settings = session.evaluation
    scores = [
        score_policy(
            policy,
            evaluation_examples(session, setup, policy, one, on_frames and partial(on_frames, one.dataset)),
            setup.statistics_of(one.report),
            dataset=one.dataset,
            seed=session.seed,
            times=settings.times,
            batch_size=settings.batch_size,
            every_frames=settings.every_frames,
        ).model_copy(update={"unseen_by": setup.unseen_by(one)})
        for one in setup.sets
    ]
    loss, standard_error, degrees = composite_score(scores)
    return Evaluation(
        round=round_number,
        policy_loss=loss,
        policy_loss_se=standard_error,
        action_error_degrees=degrees,
        sets=tuple(scores),
        normalization=setup.normalization,
        seed=session.seed,
        times=settings.times,
        seconds=perf_counter() - started,
    )


def save_policy_checkpoint(
    session: Session,
    setup: SessionSetup,
    weights: tuple[Path, str],
    folder: Path,
    extra_files: Mapping[str, str] | ExtraFiles,
) -> None:
    """Write global weights as a complete LeRobot policy folder.

    Args:
        session: the settings.
        setup: recipe and statistics; those of the default group are written into the pre- and postprocessor.
        weights: path and digest.
        folder: replaced if it exists.
        extra_files: further text files by name (README.md, metrics.json), or a function that returns them from the
            SHA-256 of each other file.

    Raises:
        CheckpointError: the weights do not have the digest.
        DiskFull: the disk has no room for the folder.
    """
    policy = policy_with_weights(session, setup.recipe, weights)
    reference = session_reference(session, setup)
    others = {group.name: group.statistics for group in setup.groups[1:]}
    steps = session.rollout.replan_steps if session.rollout.tasks else None
    files = _with_reference(extra_files, reference)
    save_policy(policy, setup.statistics, folder, files, others, _image_shapes(session, setup), steps)


def _with_reference(extra_files: Mapping[str, str] | ExtraFiles, reference: RobotReference) -> ExtraFiles:
    """Return the extra files with robot.json, whose digest the other files may name."""
    text = reference.model_dump_json(indent=1) + "\n"

    def files(digests: Mapping[str, str]) -> dict[str, str]:
        known = {**digests, ROBOT_FILE: hashlib.sha256(text.encode()).hexdigest()}
        others = extra_files(known) if callable(extra_files) else extra_files
        return {**others, ROBOT_FILE: text}

    return files


def _image_shapes(session: Session, setup: SessionSetup) -> dict[str, tuple[int, int]]:
    """Height and width of each camera by feature key, as the first evaluation set has them."""
    if not setup.sets:
        return {}
    reader = EpisodeReader(Path(setup.sets[0].root), setup.sets[0].rename_map)
    return {f"{CAMERA_PREFIX}{camera}": reader.image_shape(camera) for camera in session.contract.cameras}


def policy_with_weights(session: Session, recipe: PolicyRecipe, weights: tuple[Path, str]) -> Any:
    """The policy with the global weights of a file (path, digest).

    Raises:
        CheckpointError: the weights do not have the digest.
    """
    policy, _ = cached_policy(recipe, Path(session.cache_dir), pick_device(session.training.device))
    with open_checked(*weights) as file:
        install_weights(policy, file)
    return policy

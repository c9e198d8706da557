"""The server's side of a model: the start, the judgement on unseen data, the saved policy."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any, Self

import torch

from zk0.errors import CheckpointError, DatasetError, EvaluationError, PolicyError
from zk0.folder import write_whole
from zk0.records import DatasetReport, Evaluation, Member, PolicyRecipe, Record, Split, Statistics
from zk0.robot.dataset import EpisodeReader
from zk0.robot.digest import episode_digests
from zk0.robot.policy import install_weights, make_processors, save_policy, trained_weights
from zk0.session import EvaluationSetSettings, Session, terms_of
from zk0.training.client import admit, feature_cache, warm_policy
from zk0.training.device import pick_device
from zk0.training.evaluate import composite, score
from zk0.training.examples import CachedExamples
from zk0.training.features import FramesListener
from zk0.training.recordings import find_dataset
from zk0.weights import digest as digest_of
from zk0.weights import open_checked, save_weights

SetListener = Callable[[str, int, int], None]
"""Told a data set, its frames whose features are computed so far, and how many have to be."""


class EvaluationSet(Record):
    """One data set that judges: where it is and which of its episodes count."""

    dataset: str
    root: str
    rename_map: dict[str, str]
    report: DatasetReport
    split: Split
    digests: tuple[str, ...]
    """SHA-256 of states and actions of each judging episode."""


class Ground(Record):
    """What a session stands on, decided before its first round; clients may be added, nothing else changes."""

    recipe: PolicyRecipe
    members: tuple[Member, ...]
    sets: tuple[EvaluationSet, ...]
    statistics: Statistics
    """Of the clients that it began with."""
    late: dict[str, int] = {}
    """First round of each client that came later; `members` holds it too."""

    @classmethod
    def kept_in(cls, path: Path) -> Self | None:
        """What a session that is taken up stands on; None where it begins."""
        return cls.model_validate_json(path.read_text(encoding="utf-8")) if path.is_file() else None

    def with_newcomers(self, members: Sequence[Member], round_number: int, path: Path) -> Ground:
        """The same, with clients that take part from this round on; written down."""
        late = {**self.late, **{member.client: round_number for member in members}}
        grown = self.model_copy(update={"members": (*self.members, *members), "late": late})
        write_whole(path, grown.model_dump_json(indent=2))
        return grown

    def keep(self, path: Path) -> None:
        """Write this down where a session begins; where one is taken up, prove that nothing has changed.

        Raises:
            DatasetError: a client's or a judging data set is not what the session began with.
            PolicyError: the policy is not.
        """
        if path.is_file():
            self._check_unchanged(Ground.model_validate_json(path.read_text(encoding="utf-8")))
            return
        write_whole(path, self.model_dump_json(indent=2))

    def _check_unchanged(self, before: Ground) -> None:
        was, now = _episodes_of(before), _episodes_of(self)
        if changed := sorted(name for name in was.keys() | now.keys() if was.get(name) != now.get(name)):
            raise DatasetError(
                f"{', '.join(changed)}: not the episodes that this session began with; "
                "restore them or start a new session"
            )
        if self.recipe != before.recipe:
            raise PolicyError(
                f"{self.recipe.path}: not the policy that this session began with (frozen weights differ)"
            )


def _episodes_of(ground: Ground) -> dict[str, list[tuple[str, ...]]]:
    """Who holds which episodes; a data set may judge more than once."""
    held: dict[str, list[tuple[str, ...]]] = {m.client: [m.train_digests] for m in ground.members}
    for judging in ground.sets:
        held.setdefault(judging.dataset, []).append(judging.digests)
    return held


def recipe_of(session: Session) -> PolicyRecipe:
    """What to build, before anyone has built it."""
    return PolicyRecipe(
        path=session.policy.path,
        revision=session.policy.revision,
        cameras=session.contract.cameras,
        joints=len(session.contract.joints),
        seed=session.seed,
    )


def prepare_evaluation_set(settings: EvaluationSetSettings, session: Session) -> EvaluationSet:
    """A data set that judges, checked like a client's.

    Raises:
        DatasetError: it is missing, broken, or not what the federation agreed on.
        EvaluationError: it has too few episodes.
    """
    root = find_dataset(settings.dataset, Path(session.cache_dir), session.simulator)
    report = admit(settings.dataset, root, terms_of(session, session.name), settings.rename_map)
    episodes = EpisodeReader(root, settings.rename_map).episodes
    count = settings.last_episodes or len(episodes)
    if count > len(episodes):
        raise EvaluationError(
            f"{settings.dataset}: {len(episodes)} episodes, expected at least last_episodes = {count}"
        )
    judging = episodes[-count:]
    return EvaluationSet(
        dataset=settings.dataset,
        root=str(root),
        rename_map=settings.rename_map,
        report=report,
        split=Split(train=(), held_out=judging),
        digests=episode_digests(root, judging, settings.rename_map),
    )


def start_policy(session: Session, target: Path, expected: str | None = None) -> tuple[PolicyRecipe, str, int]:
    """Build the policy, write its trained weights to `target`; the full recipe, the weights' digest and bytes.

    `expected` is the digest that the weights must have: a session that is taken up starts from the very same.

    Raises:
        PolicyError: it cannot be built.
        CheckpointError: its weights are not the expected ones; nothing is written then.
    """
    recipe = recipe_of(session)
    policy, frozen = warm_policy(recipe, Path(session.cache_dir), pick_device(session.training.device), fresh=True)
    weights = trained_weights(policy)
    if expected not in (None, found := digest_of(weights)):
        raise CheckpointError(
            f"{session.policy.path}: weights {found[:12]} at the start, this session began with {str(expected)[:12]}"
        )
    digest, size = save_weights(target, weights)
    return recipe.model_copy(update={"frozen_digest": frozen}), digest, size


def evaluate_weights(
    session: Session,
    ground: Ground,
    weights: tuple[Path, str],
    round_number: int,
    on_frames: SetListener | None = None,
) -> Evaluation:
    """Judge the weights in a file (path, digest) on every set; `on_frames` is told of features that are computed first.

    Raises:
        EvaluationError: a number is not finite.
        CheckpointError: the weights are not those of the digest.
    """
    started = perf_counter()
    torch.set_num_threads(session.training.torch_threads)
    policy = policy_with(session, ground.recipe, weights)
    settings = session.evaluation
    scores = [
        score(
            policy,
            examples_of(session, ground, policy, one, on_frames and partial(on_frames, one.dataset)),
            ground.statistics,
            dataset=one.dataset,
            seed=session.seed,
            times=settings.times,
            batch_size=settings.batch_size,
            every_frames=settings.every_frames,
        )
        for one in ground.sets
    ]
    loss, error, degrees = composite(scores)
    return Evaluation(
        round=round_number,
        policy_loss=loss,
        policy_loss_se=error,
        action_error_degrees=degrees,
        sets=tuple(scores),
        normalization=session.normalization,
        seed=session.seed,
        times=settings.times,
        seconds=perf_counter() - started,
    )


def save_checkpoint(
    session: Session,
    recipe: PolicyRecipe,
    statistics: Statistics,
    weights: tuple[Path, str],
    folder: Path,
    extra: Mapping[str, str],
) -> None:
    """A complete LeRobot policy folder of the weights in a file (path, digest)."""
    save_policy(policy_with(session, recipe, weights), statistics, folder, extra)


def policy_with(session: Session, recipe: PolicyRecipe, weights: tuple[Path, str]) -> Any:
    """The policy with the weights of a file (path, digest) in it."""
    policy, _ = warm_policy(recipe, Path(session.cache_dir), pick_device(session.training.device))
    with open_checked(*weights) as file:
        install_weights(policy, file)
    return policy


_prepared: dict[str, CachedExamples] = {}


def examples_of(
    session: Session, ground: Ground, policy: Any, one: EvaluationSet, on_frames: FramesListener | None = None
) -> CachedExamples:
    """The set's frames, decoded and encoded once per process and cache."""
    recipe, statistics = ground.recipe, ground.statistics
    asked = (recipe.model_dump_json(), one.model_dump_json(), statistics.model_dump_json())
    key = " ".join((*asked, session.training.features, session.cache_dir))
    if key not in _prepared:
        pre, _ = make_processors(policy, statistics)
        reader = EpisodeReader(Path(one.root), one.rename_map)
        cache = feature_cache(Path(session.cache_dir), policy, recipe, session.training)
        _prepared[key] = CachedExamples(reader, one.split.held_out, policy, pre, cache, on_frames)
    return _prepared[key]

"""Evaluation sets: datasets that no client trains on, checked before the session and prepared once per process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from zk0.data.check.admission import admit_dataset
from zk0.data.episode_digests import episode_digest
from zk0.data.episode_reader import EpisodeReader
from zk0.data.frame_table import read_episodes
from zk0.data.path_sketches import path_sketches
from zk0.data.repair.cached_repair import usable_dataset
from zk0.errors import EvaluationError
from zk0.evaluation.session_setup import EvaluationSet, SessionSetup
from zk0.records import Split
from zk0.settings.dataset_settings import EvaluationSetSettings
from zk0.settings.plans import session_terms
from zk0.settings.session import Session
from zk0.simulator.recordings import locate_or_record
from zk0.training.example_source import ExampleSource
from zk0.training.examples import EvaluationExamples
from zk0.training.feature_cache import FrameProgressCallback

EvaluationProgressCallback = Callable[[str, int, int], None]
"""Called with a dataset, the number of its frames whose features have been computed, and the number to compute."""


def prepare_evaluation_set(settings: EvaluationSetSettings, session: Session) -> EvaluationSet:
    """Locate an evaluation dataset, check it like a client's, and choose its evaluation episodes.

    Raises:
        DatasetError: the dataset is missing, broken, or does not satisfy the session's contract.
        EvaluationError: the dataset has fewer than `first_episodes` or `last_episodes` episodes.
    """
    cache, terms = Path(session.cache_dir), session_terms(session, session.name)
    root = locate_or_record(settings.location, cache, session.simulator)
    may_repair = session.data.repair == "repair"
    usable = usable_dataset(settings.dataset, root, cache, settings.rename_map, may_repair=may_repair)
    report = admit_dataset(
        settings.dataset, usable.root, terms, usable.rename_map, settings.units, settings.expected_episodes
    )
    chosen = _chosen_episodes(settings, EpisodeReader(usable.root, usable.rename_map).episodes)
    stored = read_episodes(usable.root, chosen, usable.rename_map)
    frames = [stored[episode] for episode in chosen]
    return EvaluationSet(
        dataset=settings.dataset,
        root=str(usable.root),
        rename_map=usable.rename_map,
        report=report.model_copy(update={"repairs": usable.repairs, "commit": usable.commit}),
        split=Split(train=(), held_out=chosen),
        digests=tuple(map(episode_digest, frames)),
        path_sketches=path_sketches(frames, report.units),
    )


def _chosen_episodes(settings: EvaluationSetSettings, episodes: Sequence[int]) -> tuple[int, ...]:
    """Return the first or last N episodes, or all of them."""
    name = "first_episodes" if settings.first_episodes else "last_episodes"
    count = settings.first_episodes or settings.last_episodes or len(episodes)
    if count > len(episodes):
        raise EvaluationError(f"{settings.dataset}: {len(episodes)} episodes, expected at least {name} = {count}")
    return tuple(episodes[:count] if settings.first_episodes else episodes[-count:])


_prepared: dict[str, EvaluationExamples] = {}


def evaluation_examples(
    session: Session,
    setup: SessionSetup,
    policy: Any,
    one: EvaluationSet,
    on_frames: FrameProgressCallback | None = None,
) -> EvaluationExamples:
    """The frames of an evaluation set, prepared on the first call in this process.

    Only the frames that `evaluation.every_frames` chooses have features.

    Args:
        session: cache folder and kind of features.
        setup: recipe and statistics.
        policy: whose frozen layers compute missing features.
        one: the evaluation set.
        on_frames: called while missing features are computed.
    """
    recipe, statistics = setup.recipe, setup.statistics_of(one.report)
    records = (recipe.model_dump_json(), one.model_dump_json(), statistics.model_dump_json())
    every = session.evaluation.every_frames
    key = " ".join((*records, session.training.features, session.cache_dir, str(every)))
    if key not in _prepared:
        source = ExampleSource(policy, recipe, statistics, session.training, Path(session.cache_dir))
        reader = EpisodeReader(Path(one.root), one.rename_map)
        _prepared[key] = source.open(reader, one.split.held_out, on_frames, every)
    return _prepared[key]

"""A client: the one who holds a private data set, says what may be said of it, and trains on it."""

import json
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from zk0.errors import DatasetError, EvaluationError, PolicyError
from zk0.records import ClientScore, DatasetReport, Member, PolicyRecipe, Split, Statistics, Update
from zk0.robot.check import check_contract, check_dataset
from zk0.robot.dataset import EpisodeReader
from zk0.robot.digest import episode_digests
from zk0.robot.lora import adapters
from zk0.robot.policy import (
    build_policy,
    frozen_digest,
    install_weights,
    make_processors,
    trained_parameters,
    trained_weights,
)
from zk0.robot.statistics import measure
from zk0.session import ClientSettings, EvaluationPlan, Plan, RoundPlan, Terms, TrainingSettings
from zk0.split import split_episodes
from zk0.training.device import pick_device
from zk0.training.evaluate import score
from zk0.training.examples import CachedExamples, DecodedExamples, Examples
from zk0.training.features import FeatureCache, FramesListener, KindName
from zk0.training.fit import fit, round_seed
from zk0.training.outbox import Finished, Outbox, open_start
from zk0.training.recordings import find_dataset
from zk0.training.scaffold import Control, server_control, weights_alone
from zk0.weights import Weights

StepListener = Callable[[int, int, float, float], None]


def admit(uri: str, root: Path, terms: Terms, rename_map: dict[str, str]) -> DatasetReport:
    """The report of a data set that may take part.

    Raises:
        DatasetError: lists every finding that keeps it out.
    """
    report = check_dataset(root, dataset=uri, quick=True, rename_map=rename_map)
    findings = (*report.findings, *check_contract(report, terms.contract, rename_map))
    report = report.model_copy(update={"findings": findings})
    if report.errors:
        raise DatasetError(f"{uri} may not take part: " + "; ".join(map(str, report.errors)))
    return report


@dataclass
class Client:
    """One client on the machine where its data lies.

    `scratch` keeps its log and its finished updates, `cache` recordings and features; both are private.
    """

    settings: ClientSettings
    terms: Terms
    scratch: Path
    cache: Path
    films: Path | None = None
    """Where its films go: the session's folder on engines of this machine, else its own."""

    @property
    def name(self) -> str:
        """What the federation calls it."""
        return self.settings.name

    @property
    def outbox(self) -> Outbox:
        """Its finished updates."""
        return Outbox(self.scratch, self.settings.dataset)

    @cached_property
    def root(self) -> Path:
        """The folder of its data set."""
        return find_dataset(self.settings.dataset, self.cache, self.terms.simulator)

    @cached_property
    def report(self) -> DatasetReport:
        """What the check of its data set found, if it may take part."""
        return admit(self.settings.dataset, self.root, self.terms, self.settings.rename_map)

    @cached_property
    def reader(self) -> EpisodeReader:
        """Reads its episodes."""
        return EpisodeReader(self.root, self.settings.rename_map)

    @cached_property
    def split(self) -> Split:
        """Which of its episodes it trains on, and which judge."""
        return split_episodes(
            self.reader.episodes,
            self.terms.data.holdout_episodes,
            self.settings.partition_index,
            self.settings.partition_count,
        )

    @cached_property
    def statistics(self) -> Statistics:
        """Moments of its training episodes."""
        return measure(self.root, self.split.train, self.settings.rename_map)

    def join(self) -> Member:
        """What it tells the server: counts, moments and digests, never a frame.

        Raises:
            DatasetError: the data set is missing, broken, or not what the federation agreed on.
        """
        split = self.split
        digests = episode_digests(self.root, (*split.train, *split.held_out), self.settings.rename_map)
        return Member(
            client=self.name,
            dataset=self.settings.dataset,
            report=self.report.model_copy(update={"root": ""}),
            split=split,
            train_frames=self.statistics.state.count,
            statistics=self.statistics,
            train_digests=digests[: len(split.train)],
            held_out_digests=digests[len(split.train) :],
        )

    def train(
        self,
        plan: RoundPlan,
        weights: Path,
        on_step: StepListener | None = None,
        on_frames: FramesListener | None = None,
    ) -> Update:
        """Train on the round's plan from the global weights in a file, or answer what was trained already.

        `on_frames` is told of frames whose features are computed before the first step, where they are not kept yet.

        Raises:
            CheckpointError: the weights are not those that the plan names.
            UpdateError: training does not give finite numbers.
        """
        kept = self.outbox.kept(plan)
        if kept is not None:
            return kept
        torch.set_num_threads(plan.training.torch_threads)
        policy = self._policy(plan)
        with open_start(plan, weights) as begun:
            install_weights(policy, weights_alone(begun))
            control = self._control(plan, policy, begun)
        examples = self.examples(plan, policy, on_frames)
        with adapted(policy, plan):
            metrics = fit(policy, examples, plan, on_step, control)
            new = control.new() if control else None
            return self.outbox.keep(plan, Finished(trained_weights(policy), examples.frames, metrics, new), weights)

    def evaluate(self, plan: EvaluationPlan, weights: Path, on_frames: FramesListener | None = None) -> ClientScore:
        """The global weights in a file, judged on this client's held-out episodes.

        Raises:
            CheckpointError: the weights are not those that the plan names.
            EvaluationError: nothing is held out, or a number is not finite.
        """
        if not self.split.held_out:
            raise EvaluationError(f"{self.name}: no episode is held out; set data.holdout_episodes to 1 or more")
        torch.set_num_threads(plan.training.torch_threads)
        policy = self.policy_with(plan, weights)
        found = score(
            policy,
            self.held_out(plan, policy, on_frames),
            plan.statistics or self.statistics,
            dataset=self.settings.dataset,
            seed=plan.terms.seed,
            times=plan.times,
            batch_size=plan.batch_size,
            every_frames=plan.every_frames,
        )
        return ClientScore(client=self.name, score=found)

    def policy_with(self, plan: Plan, weights: Path) -> Any:
        """The policy with the global weights of a file in it.

        Raises:
            CheckpointError: the weights are not those that the plan names.
        """
        policy = self._policy(plan)
        with open_start(plan, weights) as begun:
            install_weights(policy, weights_alone(begun))
        return policy

    def held_out(self, plan: Plan, policy: Any, on_frames: FramesListener | None = None) -> CachedExamples:
        """The frames that it judges on, prepared once."""
        statistics = plan.statistics or self.statistics
        key = json.dumps([plan.recipe.model_dump(), statistics.model_dump(), plan.training.features])
        if getattr(self, "_held_out_key", None) != key:
            pre, _ = make_processors(policy, statistics)
            cache = feature_cache(self.cache, policy, plan.recipe, plan.training)
            self._held_out = CachedExamples(self.reader, self.split.held_out, policy, pre, cache, on_frames)
            self._held_out_key = key
        return self._held_out

    def _control(self, plan: RoundPlan, policy: Any, begun: Weights) -> Control | None:
        if not plan.control:
            return None
        return Control(trained_parameters(policy), server_control(begun), self.outbox.own_control(plan))

    def _policy(self, plan: Plan) -> Any:
        device = pick_device(plan.training.device)
        return warm_policy(plan.recipe, self.cache, device)[0]

    def examples(self, plan: RoundPlan, policy: Any, on_frames: FramesListener | None = None) -> Examples:
        """The frames that it trains on, prepared once."""
        key = json.dumps([plan.recipe.model_dump(), plan.statistics and plan.statistics.model_dump()])
        if getattr(self, "_examples_key", None) != (key, plan.training.features):
            pre, _ = make_processors(policy, plan.statistics or self.statistics)
            if plan.training.features == "off":
                rename = self.settings.rename_map
                self._ready: Examples = DecodedExamples(self.root, self.split.train, policy, pre, rename)
            else:
                cache = feature_cache(self.cache, policy, plan.recipe, plan.training)
                self._ready = CachedExamples(self.reader, self.split.train, policy, pre, cache, on_frames)
            self._examples_key = (key, plan.training.features)
        return self._ready


def adapted(policy: Any, plan: RoundPlan) -> AbstractContextManager[None]:
    """The policy as the plan trains it: with adapters, all clients of a round begin with the same factors."""
    if plan.training.adapter == "none":
        return nullcontext()
    return adapters(policy, plan.training, round_seed(plan.terms.seed, plan.round, "adapters"))


def feature_cache(cache: Path, policy: Any, recipe: PolicyRecipe, training: TrainingSettings) -> FeatureCache:
    """The kept features under `cache` as training asks for them; with `off`, embeddings for the judge."""
    kind: KindName = "embeddings" if training.features == "off" else training.features
    limit = int(training.feature_cache_gb * 1e9)
    return FeatureCache(cache / "features", policy, recipe.cameras, kind, limit, recipe.frozen_digest)


_warm: dict[str, tuple[Any, str]] = {}


def warm_policy(recipe: PolicyRecipe, cache: Path, device: str, fresh: bool = False) -> tuple[Any, str]:
    """The policy of a recipe and the digest of its frozen weights, built once per process.

    Whoever borrows it installs their own weights first; with `fresh` it is built again and has those of the start.

    Raises:
        PolicyError: it cannot be built, or its frozen weights are not those of the recipe.
    """
    key = f"{device} {recipe.model_copy(update={'frozen_digest': None}).model_dump_json()}"
    if fresh or key not in _warm:
        _warm.clear()
        policy = build_policy(recipe, cache, device)
        _warm[key] = (policy, frozen_digest(policy))
    policy, found = _warm[key]
    if recipe.frozen_digest not in (None, found):
        raise PolicyError(
            f"{recipe.path}: frozen weights {found[:12]}, expected {str(recipe.frozen_digest)[:12]}: server and client "
            "built different policies (other weights, or other versions of lerobot or torch)"
        )
    return policy, found

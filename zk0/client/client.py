"""One client: it checks its dataset, joins, trains, and evaluates the global model on its held-out episodes.

`zk0.federation.protocol.client_app` calls it for each message of the server; `zk0.client.baseline` calls it directly.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from zk0.client.personal_policy import PersonalPolicy
from zk0.client.start_weights import open_start_weights
from zk0.client.update_outbox import TrainedUpdate, UpdateOutbox
from zk0.data.check.admission import admit_dataset
from zk0.data.episode_digests import episode_digest
from zk0.data.episode_reader import EpisodeReader
from zk0.data.frame_table import read_episodes
from zk0.data.path_sketches import path_sketches
from zk0.data.repair.cached_repair import UsableDataset, usable_dataset
from zk0.data.split import split_episodes
from zk0.data.statistics import measure_statistics, with_smallest_std
from zk0.errors import EvaluationError
from zk0.evaluation.scores import score_policy
from zk0.policy.trainable import install_weights, sent_parameters, trainable_weights
from zk0.records import (
    ClientScore,
    DatasetReport,
    JoiningStep,
    JoiningStepName,
    Member,
    SetScore,
    Split,
    Statistics,
    Update,
)
from zk0.settings.dataset_settings import ClientSettings
from zk0.settings.plans import ClientPlan, EvaluationPlan, FeaturePlan, RoundPlan, SessionTerms
from zk0.simulator.recordings import locate_or_record
from zk0.training.cached_policy import cached_policy, planned_adapter
from zk0.training.control_variate_correction import ControlVariateCorrection, server_control, without_control
from zk0.training.device import pick_device
from zk0.training.example_source import ExampleSource
from zk0.training.examples import EvaluationExamples, Examples
from zk0.training.feature_cache import FrameProgressCallback
from zk0.training.fit import TrainingStepCallback, fit
from zk0.weights.files import Weights

JoiningStepCallback = Callable[[JoiningStep], object]


def ignore_joining_step(step: JoiningStep) -> None:
    """Do nothing: the JoiningStepCallback of those who show no steps."""


def _no_clock() -> Callable[[], None]:
    """Return a function that never ends the work."""
    return lambda: None


@contextmanager
def _joining_step(step: JoiningStepName, on_step: JoiningStepCallback) -> Iterator[list[str]]:
    """Report a step with its duration and the text that the block appends; as failed where the block raises."""
    started, found = perf_counter(), list[str]()
    done = False
    try:
        yield found
        done = True
    finally:
        on_step(JoiningStep(step=step, seconds=perf_counter() - started, found=" ".join(found), failed=not done))


@dataclass
class Client:
    """One client, on the machine where its dataset lies.

    Args:
        settings: name and dataset of the client.
        terms: the session's terms, which the server sends.
        scratch: private folder for the client's log, trained updates and state.
        cache: private folder for recordings, features and the files of `tiny`.
        video_folder: where episode videos are written; None: into `scratch`. Engines on one machine pass the session's
            folder.
        start_clock: returns a function that raises once work that starts now takes longer than the client's owner
            allows; a `sim:` dataset is recorded under it.
    """

    settings: ClientSettings
    terms: SessionTerms
    scratch: Path
    cache: Path
    video_folder: Path | None = None
    start_clock: Callable[[], Callable[[], None]] = _no_clock

    @property
    def name(self) -> str:
        """The client's name in the federation."""
        return self.settings.name

    @property
    def outbox(self) -> UpdateOutbox:
        """The client's trained updates."""
        return UpdateOutbox(self.scratch, self.settings.dataset)

    @cached_property
    def located_dataset(self) -> Path:
        """The folder of the client's dataset as its owner has it; it is downloaded or recorded if need be.

        Raises:
            DatasetError: the dataset is missing.
        """
        return locate_or_record(self.settings.location, self.cache, self.terms.simulator, self.start_clock())

    @cached_property
    def usable_dataset(self) -> UsableDataset:
        """The client's dataset, or its repaired copy if session and client allow one.

        Raises:
            DatasetError: the dataset is missing, or an error of it cannot be repaired.
        """
        uri, root, renames = self.settings.dataset, self.located_dataset, self.settings.rename_map
        may_repair = self.terms.data.repair == "repair" and self.settings.allow_repair
        return usable_dataset(uri, root, self.cache, renames, may_repair=may_repair)

    @property
    def root(self) -> Path:
        """The folder of the client's dataset."""
        return self.usable_dataset.root

    @property
    def rename_map(self) -> dict[str, str]:
        """Feature key in `root` -> key in the contract."""
        return self.usable_dataset.rename_map

    @cached_property
    def dataset_report(self) -> DatasetReport:
        """What the check of the client's dataset found.

        Raises:
            DatasetError: the dataset may not take part.
        """
        usable, given = self.usable_dataset, self.settings
        report = admit_dataset(
            given.dataset, usable.root, self.terms, usable.rename_map, given.units, given.expected_episodes
        )
        return report.model_copy(update={"repairs": usable.repairs, "commit": usable.commit})

    @cached_property
    def reader(self) -> EpisodeReader:
        """Reads the client's episodes."""
        return EpisodeReader(self.root, self.rename_map)

    @cached_property
    def split(self) -> Split:
        """The client's training episodes and held-out episodes."""
        return split_episodes(
            self.reader.episodes,
            self.terms.data.holdout_episodes,
            self.settings.partition_index,
            self.settings.partition_count,
        )

    @cached_property
    def statistics(self) -> Statistics:
        """Moments of state and action over the training episodes."""
        return measure_statistics(self.root, self.split.train, self.rename_map)

    def normalization_statistics(self, plan: ClientPlan) -> Statistics:
        """The statistics that normalize this client's states and actions: the plan's, else the client's own."""
        if plan.statistics is not None:
            return plan.statistics
        found = self.dataset_report.units
        units = self.terms.contract.units if found is None or found == "ticks" else found
        return with_smallest_std(self.statistics, units)

    def join(self, on_step: JoiningStepCallback = ignore_joining_step) -> Member:
        """Check the dataset; what the client reports to the server: counts, moments and digests, never a frame.

        Args:
            on_step: called after each step, also after one that fails.

        Raises:
            DatasetError: the dataset is missing, broken, or does not satisfy the session's contract.
        """
        with _joining_step("fetch", on_step) as found:
            found.append(self.located_dataset.name)
        with _joining_step("repair", on_step) as found:
            found.append(", ".join(self.usable_dataset.repairs) or "nothing repaired")
        with _joining_step("check", on_step) as found:  # before readers, whose errors name no repair
            report = self.dataset_report
            found.append(f"no error, {len(report.findings)} warnings")
        with _joining_step("split", on_step) as found:
            split = self.split
            episodes = (*split.train, *split.held_out)
            stored = read_episodes(self.root, episodes, self.rename_map)
            frames = [stored[episode] for episode in episodes]
            digests = tuple(map(episode_digest, frames))
            found.append(f"{len(split.train)} episodes to train on, {len(split.held_out)} held out")
        with _joining_step("statistics", on_step) as found:
            found.append(f"moments of {self.statistics.state.count} frames")
        return Member(
            client=self.name,
            dataset=self.settings.dataset,
            report=report.model_copy(update={"root": ""}),
            split=split,
            train_frames=self.statistics.state.count,
            statistics=self.statistics,
            train_digests=digests[: len(split.train)],
            held_out_digests=digests[len(split.train) :],
            path_sketches=path_sketches(frames, report.units),
        )

    def compute_features(self, plan: FeaturePlan, on_frames: FrameProgressCallback | None = None) -> None:
        """Compute the features that training and evaluation read, unless they are cached.

        Args:
            plan: names the policy, the statistics, and the held-out frames.
            on_frames: called while features are computed.
        """
        torch.set_num_threads(plan.training.torch_threads)
        policy = self._build_policy(plan)
        self.training_examples(plan, policy, on_frames)
        if plan.every_frames is not None and self.split.held_out:
            self._held_out_examples(plan, policy, plan.every_frames, on_frames)

    def train(
        self,
        plan: RoundPlan,
        weights: Path,
        on_step: TrainingStepCallback | None = None,
        on_frames: FrameProgressCallback | None = None,
    ) -> Update:
        """Train one round from the global weights; an update that was trained from this plan before is returned again.

        Args:
            plan: of the round.
            weights: the file that the server sent: global weights, and SCAFFOLD's control variates if planned.
            on_step: called after each optimizer step.
            on_frames: called while missing features are computed, before the first step.

        Raises:
            CheckpointError: the weights are not those that the plan names.
            UpdateError: a loss or gradient is not finite, or a batch does not fit into memory.
        """
        stored = self.outbox.stored(plan)
        if stored is not None:
            return stored
        torch.set_num_threads(plan.training.torch_threads)
        policy = self._build_policy(plan)
        with open_start_weights(plan, weights) as start:
            install_weights(policy, without_control(start))
            control = self._control_correction(plan, policy, start)
        own = self.own_policy(plan)
        own.begin_round(policy)
        examples = self.training_examples(plan, policy, on_frames)
        with planned_adapter(policy, plan):
            metrics = fit(policy, examples, plan, on_step, control)
            new_control = control.new_client_control() if control else None
            trained = TrainedUpdate(trainable_weights(policy), examples.frames, metrics, new_control)
            own.store(policy)  # before the update, whose record says that the round is trained
            return self.outbox.store(plan, trained, weights)

    def evaluate(
        self,
        plan: EvaluationPlan,
        weights: Path,
        on_frames: FrameProgressCallback | None = None,
        on_batch: Callable[[], None] | None = None,
    ) -> ClientScore:
        """Evaluate the global model on the client's held-out episodes, and the client's own policy if it has one.

        Args:
            plan: of the evaluation; it says whether the client's own policy is saved.
            weights: the file that the server sent.
            on_frames: called while missing features are computed.
            on_batch: called after each batch of frames.

        Raises:
            CheckpointError: the weights are not those that the plan names.
            EvaluationError: no episode is held out, or a number is not finite.
        """
        if not self.split.held_out:
            raise EvaluationError(f"{self.name}: no episode is held out; set data.holdout_episodes to 1 or more")
        torch.set_num_threads(plan.training.torch_threads)
        policy, own = self.load_global_model(plan, weights), self.own_policy(plan)
        examples, statistics = self.held_out_examples(plan, policy, on_frames), self.normalization_statistics(plan)

        def score() -> SetScore:
            return score_policy(
                policy,
                examples,
                statistics,
                dataset=self.settings.dataset,
                seed=plan.terms.seed,
                times=plan.times,
                batch_size=plan.batch_size,
                every_frames=plan.every_frames,
                on_batch=on_batch,
            )

        of_global = score()
        has_own = own.install(policy)
        found = ClientScore(client=self.name, score=of_global, personal=score() if has_own else None)
        if has_own and plan.save_personal:
            own.save(policy, statistics)
        return found

    def own_policy(self, plan: ClientPlan) -> PersonalPolicy:
        """The client's own policy in the plan's session."""
        return PersonalPolicy(self.scratch, plan)

    def load_global_model(self, plan: ClientPlan, weights: Path) -> Any:
        """The policy with the global weights of a file.

        Raises:
            CheckpointError: the weights are not those that the plan names.
        """
        policy = self._build_policy(plan)
        with open_start_weights(plan, weights) as start:
            install_weights(policy, without_control(start))
        return policy

    def held_out_examples(
        self,
        plan: EvaluationPlan,
        policy: Any,
        on_frames: FrameProgressCallback | None = None,
    ) -> EvaluationExamples:
        """The frames of the held-out episodes, prepared on the first call.

        Args:
            plan: of the evaluation; only frames that its `every_frames` chooses have features.
            policy: whose frozen layers compute missing features.
            on_frames: called while missing features are computed.
        """
        return self._held_out_examples(plan, policy, plan.every_frames, on_frames)

    def _held_out_examples(
        self,
        plan: ClientPlan,
        policy: Any,
        every: int,
        on_frames: FrameProgressCallback | None,
    ) -> EvaluationExamples:
        source = self._example_source(plan, policy)
        key = json.dumps([plan.recipe.model_dump(), source.statistics.model_dump(), plan.training.features])
        if getattr(self, "_held_out_key", None) != key:
            self._held_out: dict[int, EvaluationExamples] = {}
            self._held_out_key = key
        if every not in self._held_out:
            self._held_out[every] = source.open(self.reader, self.split.held_out, on_frames, every)
        return self._held_out[every]

    def training_examples(
        self, plan: ClientPlan, policy: Any, on_frames: FrameProgressCallback | None = None
    ) -> Examples:
        """The frames of the training episodes, prepared on the first call."""
        key = json.dumps([plan.recipe.model_dump(), plan.statistics and plan.statistics.model_dump()])
        if getattr(self, "_training_key", None) != (key, plan.training.features):
            source = self._example_source(plan, policy)
            self._training: Examples = source.open(self.reader, self.split.train, on_frames)
            self._training_key = (key, plan.training.features)
        return self._training

    def _example_source(self, plan: ClientPlan, policy: Any) -> ExampleSource:
        return ExampleSource(policy, plan.recipe, self.normalization_statistics(plan), plan.training, self.cache)

    def _control_correction(self, plan: RoundPlan, policy: Any, start: Weights) -> ControlVariateCorrection | None:
        if not plan.use_control_variates:
            return None
        own = self.outbox.client_control(plan)
        return ControlVariateCorrection(sent_parameters(policy), server_control(start), own)

    def _build_policy(self, plan: ClientPlan) -> Any:
        return cached_policy(plan.recipe, self.cache, pick_device(plan.training.device))[0]

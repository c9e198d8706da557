"""Baselines of a federated session: local-only training of one client, and centralized training on all clients' data.

A baseline starts from the session's round 0 and repeats each round of the session's ledger: the same learning rate and
schedule, a new optimizer, the same number of optimizer steps and samples, but without the proximal term, because there
is no global model to stay near. Its folder holds a ledger, weights and attempts like a session folder, so
`zk0 compare` reads it.
"""

import os
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from zk0.aggregation.aggregate import aggregate
from zk0.audit.ledger import Ledger
from zk0.client.client import Client
from zk0.client.pooled_examples import PooledExamples
from zk0.client.update_outbox import TrainedUpdate, UpdateOutbox
from zk0.errors import DatasetError, LedgerError, SettingsError
from zk0.evaluation.closed_loop import roll_out_task
from zk0.evaluation.global_model import evaluate_weights, policy_with_weights
from zk0.evaluation.session_setup import SessionSetup
from zk0.policy.trainable import trainable_weights
from zk0.records import Checkpoint, ClientEvaluation, RoundDecision, RoundRecord, Update
from zk0.rules.round_decision import client_lr
from zk0.settings.evaluation_settings import VideoSettings
from zk0.settings.plans import EvaluationPlan, RoundPlan, session_terms
from zk0.settings.session import Session
from zk0.stats.baseline_comparison import CENTRALIZED_CLIENT, TrainingBudget, training_budget
from zk0.storage.atomic import atomic_write_text
from zk0.storage.session_folder import SessionFolder
from zk0.training.batches import even_batches, round_seed
from zk0.training.cached_policy import planned_adapter
from zk0.training.fit import fit


@dataclass(frozen=True)
class Baseline:
    """One baseline of a finished session, in a folder of its own.

    Args:
        source: the session's folder.
        folder: the baseline's folder; rounds that its ledger holds already are not trained again.
        client: the client that trains locally; None: centralized training.
        larger_batches: for centralized training: as many steps as one client, each with as many frames as all clients'
            steps together; else as many steps as all clients together.
    """

    source: SessionFolder
    folder: Path
    client: str | None = None
    larger_batches: bool = False

    @cached_property
    def session(self) -> Session:
        """The federated session's settings, without videos."""
        return self.source.read_session().model_copy(update={"video": VideoSettings(rollouts=0, episodes=0)})

    @cached_property
    def setup(self) -> SessionSetup:
        """The federated session's setup."""
        return SessionSetup.model_validate_json(self.source.setup.read_text(encoding="utf-8"))

    @cached_property
    def federated(self) -> tuple[RoundRecord, ...]:
        """The rounds of the federated session."""
        return Ledger(self.source.ledger).read()

    @cached_property
    def clients(self) -> dict[str, Client]:
        """The session's clients by name; their datasets must be on this machine.

        Raises:
            DatasetError: a client's training episodes are not those of the federated session.
        """
        terms, cache = session_terms(self.session, self.source.name), Path(self.session.cache_dir)
        scratch = self.folder / "clients"
        clients = {c.name: Client(c, terms, scratch / c.name, cache) for c in self.session.local_clients()}
        for member in self.setup.members:
            if clients[member.client].join().train_digests != member.train_digests:
                raise DatasetError(
                    f"{member.client}: {member.dataset} is not what the federation trained on; restore it, or choose "
                    "another folder and train again"
                )
        return clients

    def run(self) -> tuple[RoundRecord, ...]:
        """Train the missing rounds, evaluate the last model and roll it out; all rounds of the baseline.

        Raises:
            SettingsError: the session has personal parameters, which a baseline would not keep apart.
        """
        if personal := self.session.training.personal:
            raise SettingsError(
                f"{self.source.path}: training.personal {', '.join(personal)}; baselines of such a session are not "
                "available, expected one in which all parameters are federated"
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        ledger, last = Ledger(self.folder / "ledger.jsonl"), self.federated[-1].round
        history = ledger.read() or self._record_round_0(ledger)
        for number in range(len(history), last + 1):
            ledger.append(self._round(history[-1].checkpoint, self.federated[number]))
            history = ledger.read()
        own_folder, now = SessionFolder(self.folder), datetime.now().astimezone()
        for task in self.session.rollout.tasks:
            roll_out_task(self.session, self.setup, own_folder, history[-1], task, now)
        return history

    def _record_round_0(self, ledger: Ledger) -> tuple[RoundRecord, ...]:
        """Copy the federated session's round 0, which refers to the weights in the session's folder."""
        if not self.federated:
            raise LedgerError(f"{self.source.path}: no round is finished; expected a finished session")
        first = self.federated[0]
        path = os.path.relpath(self.source.path / first.checkpoint.path, self.folder)
        atomic_write_text(SessionFolder(self.folder).setup, self.source.setup.read_text(encoding="utf-8"))
        ledger.append(first.model_copy(update={"checkpoint": first.checkpoint.model_copy(update={"path": path})}))
        return ledger.read()

    def _round(self, before: Checkpoint, federated: RoundRecord) -> RoundRecord:
        """Train one round, and evaluate its weights if it is the last one."""
        started, number = perf_counter(), federated.round
        record = self._train_round(before, federated)
        if number == self.federated[-1].round:
            weights = (self.folder / record.checkpoint.path, record.checkpoint.digest)
            evaluation = evaluate_weights(self.session, self.setup, weights, number)
            on_clients = self._evaluate_on_clients(record.checkpoint)
            record = record.model_copy(update={"evaluation": evaluation, "client_evaluation": on_clients})
        finished = datetime.now().astimezone().isoformat(timespec="seconds")
        return record.model_copy(update={"seconds": perf_counter() - started, "finished_at": finished})

    def _train_round(self, before: Checkpoint, federated: RoundRecord) -> RoundRecord:
        """The round's new weights; unchanged weights if the client did not take part in the federated round."""
        if federated.decision is None:
            raise LedgerError(
                f"{self.source.ledger}: round {federated.round} has no decision; expected a learning rate"
            )
        own_folder, weights = SessionFolder(self.folder), self.folder / before.path
        decision = federated.decision.model_copy(update={"mu": 0.0, "reason": "as the federation's, without FedProx"})
        common = {"round": federated.round, "decision": decision, "seconds": 0.0, "finished_at": ""}
        budget = training_budget([federated], self.session.training.batch_size)
        if self.client is not None and self.client not in {u.client for u in federated.updates}:
            return RoundRecord(**common, checkpoint=before.model_copy(update={"round": federated.round}))
        torch.set_num_threads(self.session.training.torch_threads)
        if self.client is None:
            plan = self._round_plan(CENTRALIZED_CLIENT, before, decision)
            update = self._train_centralized(plan, federated, budget, weights)
        else:
            update = self.clients[self.client].train(self._round_plan(self.client, before, decision), weights)
        target = own_folder.weights(federated.round)
        target.parent.mkdir(exist_ok=True)
        mean = aggregate([update], weights, target)
        path = own_folder.relative(target)
        return RoundRecord(
            **common,
            checkpoint=Checkpoint(round=federated.round, path=path, digest=mean.digest, bytes=mean.bytes),
            updates=(update.model_copy(update={"path": own_folder.relative(Path(update.path))}),),
            contributions=mean.contributions,
            param_update_norm=mean.param_update_norm,
        )

    def _round_plan(self, client: str, before: Checkpoint, decision: RoundDecision) -> RoundPlan:
        return RoundPlan(
            **self._plan_fields(client, before, decision.round),
            lr=client_lr(decision, client),
            mu=0.0,
            scheduler=self.session.scheduler,
        )

    def _plan_fields(self, client: str, model: Checkpoint, round_number: int) -> dict[str, Any]:
        return {
            "terms": session_terms(self.session, self.source.name),
            "client": client,
            "round": round_number,
            "recipe": self.setup.recipe,
            "global_digest": model.digest,
            "statistics": self.setup.statistics
            if client == CENTRALIZED_CLIENT
            else self.setup.client_statistics(client),
            "training": self.session.training.local_settings(),
        }

    def _train_centralized(
        self, plan: RoundPlan, federated: RoundRecord, budget: TrainingBudget, weights: Path
    ) -> Update:
        """Train one round on the pooled frames of all clients, with the training budget of the federated round."""
        outbox = UpdateOutbox(self.folder / "clients" / CENTRALIZED_CLIENT, CENTRALIZED_CLIENT)
        if (stored := outbox.stored(plan)) is not None:
            return stored
        of_one_client = [update.metrics.local_steps for update in federated.updates]
        steps = max(of_one_client) if self.larger_batches else budget.optimizer_steps
        policy = policy_with_weights(self.session, self.setup.recipe, (weights, plan.global_digest))
        own = {name: self.setup.client_statistics(name) for name in self.clients}
        pooled = PooledExamples(
            [
                client.training_examples(plan.model_copy(update={"statistics": own[name]}), policy)
                for name, client in self.clients.items()
            ]
        )
        seed = round_seed(plan.terms.seed, plan.round, "batches of all")  # decides the batches: it must not change
        batches = even_batches(pooled.frames, budget.samples, steps, torch.Generator().manual_seed(seed))
        fixed_steps = plan.training.model_copy(update={"local_steps": steps, "local_epochs": None})
        with planned_adapter(policy, plan):
            metrics = fit(policy, pooled, plan.model_copy(update={"training": fixed_steps}), batches=batches)
            return outbox.store(plan, TrainedUpdate(trainable_weights(policy), pooled.frames, metrics), weights)

    def _evaluate_on_clients(self, model: Checkpoint) -> ClientEvaluation | None:
        """The model on every client's held-out episodes, if the federated session evaluated there in this round."""
        session, started = self.session, perf_counter()
        if not session.evaluates_on_clients_after(model.round):
            return None
        how = session.evaluation.model_dump(include={"times", "batch_size", "every_frames"})
        weights = self.folder / model.path
        return ClientEvaluation(
            round=model.round,
            scores=tuple(
                client.evaluate(EvaluationPlan(**self._plan_fields(name, model, model.round), **how), weights)
                for name, client in self.clients.items()
            ),
            normalization=self.setup.normalization,
            seed=session.seed,
            times=session.evaluation.times,
            seconds=perf_counter() - started,
        )

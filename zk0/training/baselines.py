"""What a federation is measured against: each client alone, and all data in one place, from the same start.

A baseline does in every round what the federation's ledger says was done: the same learning rate and schedule, a fresh
optimizer, as many optimizer steps and samples. It has nobody to stay near to, so no proximal term. Its folder holds a
ledger, weights and attempts like a session's, so that `zk0 compare` reads it.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zk0.aggregation.aggregate import aggregate
from zk0.contrast import CENTRALISED, work_of
from zk0.errors import DatasetError, LedgerError
from zk0.folder import SessionFolder
from zk0.ledger import Ledger
from zk0.records import Checkpoint, ClientEvaluation, Decision, RoundRecord, Update
from zk0.robot.policy import trained_weights
from zk0.schedule import client_lr
from zk0.session import EvaluationPlan, RoundPlan, Session, VideoSettings, terms_of
from zk0.training.client import Client, adapted
from zk0.training.closed_loop import roll_out_task
from zk0.training.examples import Examples
from zk0.training.fit import fit, round_seed
from zk0.training.judge import Ground, evaluate_weights, policy_with
from zk0.training.outbox import Finished, Outbox


class Union:
    """The frames of several clients as those of one."""

    def __init__(self, parts: Sequence[Examples]) -> None:
        self.parts = parts
        self.frames = sum(part.frames for part in parts)
        self.actions_counted = np.concatenate([part.actions_counted for part in parts])

    def loss(self, policy: Any, indices: Sequence[int], noise: Tensor, time: Tensor) -> Tensor:
        """Mean over all real actions of the batch, each part's loss weighted by those in it."""
        losses, first = [], 0
        counted = max(1, int(self.actions_counted[list(indices)].sum()))
        for part in self.parts:
            mine = [k for k, index in enumerate(indices) if first <= index < first + part.frames]
            own = [indices[k] - first for k in mine]
            if own:
                share = int(part.actions_counted[own].sum()) / counted
                losses.append(part.loss(policy, own, noise[mine], time[mine]) * share)
            first += part.frames
        return torch.stack(losses).sum()


def even_batches(frames: int, samples: int, steps: int, generator: torch.Generator) -> Iterator[list[int]]:
    """So many samples in so many batches of nearly equal size: pass after pass over all frames, each in a new order.

    >>> [len(b) for b in even_batches(frames=5, samples=13, steps=4, generator=torch.Generator().manual_seed(0))]
    [3, 3, 4, 3]
    """
    order: list[int] = []
    edges = np.linspace(0, samples, steps + 1).round().astype(int)
    for size in np.diff(edges).tolist():
        while len(order) < size:
            order += torch.randperm(frames, generator=generator).tolist()
        yield order[:size]
        del order[:size]


@dataclass(frozen=True)
class Baseline:
    """One baseline of a finished session, in a folder of its own.

    Args:
        source: the session's folder.
        folder: where the baseline lives; rounds that lie there already are not trained again.
        client: who trains alone; None: all data in one place.
        larger_batches: all data in one place makes as many steps as one client, each with as many frames as all
            clients' together; else as many steps as all clients together.
    """

    source: SessionFolder
    folder: Path
    client: str | None = None
    larger_batches: bool = False

    @cached_property
    def session(self) -> Session:
        """As the federation ran it; nothing is filmed."""
        return self.source.session().model_copy(update={"video": VideoSettings(rollouts=0, episodes=0)})

    @cached_property
    def ground(self) -> Ground:
        """What the federation stood on."""
        return Ground.model_validate_json(self.source.ground.read_text(encoding="utf-8"))

    @cached_property
    def federated(self) -> tuple[RoundRecord, ...]:
        """The federation's rounds."""
        return Ledger(self.source.ledger).read()

    @cached_property
    def clients(self) -> dict[str, Client]:
        """Those whose data this machine has, as they joined.

        Raises:
            DatasetError: somebody's episodes are not those that the federation trained on.
        """
        terms, cache = terms_of(self.session, self.source.name), Path(self.session.cache_dir)
        scratch = self.folder / "clients"
        made = {c.name: Client(c, terms, scratch / c.name, cache) for c in self.session.members()}
        for member in self.ground.members:
            if made[member.client].join().train_digests != member.train_digests:
                raise DatasetError(
                    f"{member.client}: {member.dataset} is not what the federation trained on; restore it, or choose "
                    "another folder and train anew"
                )
        return made

    def carry_out(self) -> tuple[RoundRecord, ...]:
        """Train what is not trained yet, judge the last model, let it move the arm; the baseline's rounds."""
        self.folder.mkdir(parents=True, exist_ok=True)
        ledger, last = Ledger(self.folder / "ledger.jsonl"), self.federated[-1].round
        history = ledger.read() or self._begin(ledger)
        for number in range(len(history), last + 1):
            ledger.append(self._round(history[-1].checkpoint, self.federated[number]))
            history = ledger.read()
        here, now = SessionFolder(self.folder), datetime.now().astimezone()
        for task in self.session.rollout.tasks:
            roll_out_task(self.session, self.ground, here, history[-1], task, now)
        return history

    def _begin(self, ledger: Ledger) -> tuple[RoundRecord, ...]:
        """The federation's own round 0, its weights where they lie."""
        if not self.federated:
            raise LedgerError(f"{self.source.path}: no round is finished; expected a finished session")
        first = self.federated[0]
        path = os.path.relpath(self.source.path / first.checkpoint.path, self.folder)
        (self.folder / "ground.json").write_text(self.source.ground.read_text(encoding="utf-8"), encoding="utf-8")
        ledger.append(first.model_copy(update={"checkpoint": first.checkpoint.model_copy(update={"path": path})}))
        return ledger.read()

    def _round(self, before: Checkpoint, record: RoundRecord) -> RoundRecord:
        started, number = perf_counter(), record.round
        made = self._trained(before, record)
        if number == self.federated[-1].round:
            weights = (self.folder / made.checkpoint.path, made.checkpoint.digest)
            judged = evaluate_weights(self.session, self.ground, weights, number)
            by_clients = self._judged_by_clients(made.checkpoint)
            made = made.model_copy(update={"evaluation": judged, "client_evaluation": by_clients})
        finished = datetime.now().astimezone().isoformat(timespec="seconds")
        return made.model_copy(update={"seconds": perf_counter() - started, "finished_at": finished})

    def _trained(self, before: Checkpoint, record: RoundRecord) -> RoundRecord:
        """The round's new weights; those before it where the client was not asked in this round."""
        if record.decision is None:
            raise LedgerError(f"{self.source.ledger}: round {record.round} was not decided; expected its learning rate")
        here, weights = SessionFolder(self.folder), self.folder / before.path
        decision = record.decision.model_copy(update={"mu": 0.0, "reason": "as the federation's, without FedProx"})
        common = {"round": record.round, "decision": decision, "seconds": 0.0, "finished_at": ""}
        if self.client is not None and self.client not in {u.client for u in record.updates}:
            return RoundRecord(**common, checkpoint=before.model_copy(update={"round": record.round}))
        torch.set_num_threads(self.session.training.torch_threads)
        if self.client is None:
            update = self._all_in_one_place(self._plan(CENTRALISED, before, decision), record, weights)
        else:
            update = self.clients[self.client].train(self._plan(self.client, before, decision), weights)
        target = here.weights(record.round)
        target.parent.mkdir(exist_ok=True)
        made = aggregate([update], weights, target)
        path = here.relative(target)
        return RoundRecord(
            **common,
            checkpoint=Checkpoint(round=record.round, path=path, digest=made.digest, bytes=made.bytes),
            updates=(update.model_copy(update={"path": here.relative(Path(update.path))}),),
            contributions=made.contributions,
            param_update_norm=made.param_update_norm,
        )

    def _plan(self, who: str, before: Checkpoint, decision: Decision) -> RoundPlan:
        return RoundPlan(
            **self._told(who, before, decision.round),
            lr=client_lr(decision, who),
            mu=0.0,
            scheduler=self.session.scheduler,
        )

    def _told(self, who: str, model: Checkpoint, round_number: int) -> dict[str, Any]:
        return {
            "terms": terms_of(self.session, self.source.name),
            "client": who,
            "round": round_number,
            "recipe": self.ground.recipe,
            "global_digest": model.digest,
            "statistics": self.ground.statistics,
            "training": self.session.training,
        }

    def _all_in_one_place(self, plan: RoundPlan, record: RoundRecord, weights: Path) -> Update:
        outbox = Outbox(self.folder / "clients" / CENTRALISED, CENTRALISED)
        if (kept := outbox.kept(plan)) is not None:
            return kept
        work = work_of([record], plan.training.batch_size)
        steps = max(u.metrics.local_steps for u in record.updates) if self.larger_batches else work.steps
        policy = policy_with(self.session, self.ground.recipe, (weights, plan.global_digest))
        union = Union([client.examples(plan, policy) for client in self.clients.values()])
        generator = torch.Generator().manual_seed(round_seed(plan.terms.seed, plan.round, "batches of all"))
        counted = plan.training.model_copy(update={"local_steps": steps, "local_epochs": None})
        with adapted(policy, plan):
            batches = even_batches(union.frames, work.samples, steps, generator)
            metrics = fit(policy, union, plan.model_copy(update={"training": counted}), batches=batches)
            return outbox.keep(plan, Finished(trained_weights(policy), union.frames, metrics), weights)

    def _judged_by_clients(self, model: Checkpoint) -> ClientEvaluation | None:
        session, started = self.session, perf_counter()
        if not session.clients_judge_after(model.round):
            return None
        how = session.evaluation.model_dump(include={"times", "batch_size", "every_frames"})
        weights = self.folder / model.path
        return ClientEvaluation(
            round=model.round,
            scores=tuple(
                client.evaluate(EvaluationPlan(**self._told(name, model, model.round), **how), weights)
                for name, client in self.clients.items()
            ),
            normalization=session.normalization,
            seed=session.seed,
            times=session.evaluation.times,
            seconds=perf_counter() - started,
        )

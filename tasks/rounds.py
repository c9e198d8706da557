"""The steps of a session and of a round, each safe to run twice."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

from prefect import task
from prefect.cache_policies import NO_CACHE

from tasks.client_runs import ClientRuns, measured
from tasks.events import Event, say, tell
from tasks.retry import is_transient
from zk0 import merkle
from zk0.diagnostics import memory_told
from zk0.disk import forget_pages
from zk0.errors import CheckpointError, RoundIncomplete
from zk0.folder import SessionFolder
from zk0.ledger import Ledger
from zk0.records import (
    Checkpoint,
    Contribution,
    Decision,
    PolicyRecipe,
    PrivacySpent,
    Record,
    Refusal,
    RoundRecord,
    ServerState,
    Update,
)
from zk0.schedule import client_lr
from zk0.session import RoundPlan, Session, terms_of
from zk0.weights import check_weights

if TYPE_CHECKING:
    from zk0.training.judge import Ground


class Trained(Record):
    """What the clients brought in one round."""

    updates: tuple[Update, ...]
    refusals: tuple[Refusal, ...]
    """Of every attempt: who was refused first may be among the updates later."""
    sent_bytes: int
    """Of the weights that each client was sent."""


class Averaged(Record):
    """The new global weights, and how each client stands to them."""

    checkpoint: Checkpoint
    contributions: tuple[Contribution, ...]
    param_update_norm: float
    server_state: tuple[ServerState, ...]
    privacy: PrivacySpent | None


@contextmanager
def timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    """Adds what the block took to `seconds`."""
    started = perf_counter()
    yield
    seconds[stage] = seconds.get(stage, 0.0) + perf_counter() - started


@task(task_run_name="build {session.policy.path}", cache_policy=NO_CACHE)
def start_policy(session: Session, folder: str, history: Sequence[RoundRecord]) -> tuple[PolicyRecipe, Checkpoint]:
    """The policy of round 0; a session that is taken up again must start from the very same.

    Raises:
        CheckpointError: the policy's weights are not those the session began with.
    """
    from zk0.training.judge import start_policy as start

    tell(Event(kind="stage", text=f"building the policy {session.policy.path}"))
    here = SessionFolder(Path(folder))
    target = here.weights(0)
    recipe, digest, size = start(session, target, history[0].checkpoint.digest if history else None)
    say(f"policy {session.policy.path}: {size / 1e6:.1f} MB of trained weights, digest {digest[:12]}")
    return recipe, Checkpoint(round=0, path=here.relative(target), digest=digest, bytes=size)


@task(task_run_name="train round {decision.round}", cache_policy=NO_CACHE, retry_condition_fn=is_transient)
def train_clients(session: Session, folder: str, ground: "Ground", before: Checkpoint, decision: Decision) -> Trained:
    """Who takes part trains from the global weights; called again, only those without an answer are asked."""
    from zk0.federation.downlink import as_sent
    from zk0.federation.open import federation
    from zk0.federation.quarantine import without_outliers

    here = SessionFolder(Path(folder))
    weights, spool = here.path / before.path, here.updates(decision.round)
    sent = as_sent(session.federation, weights, here.sent(before.round), here.control(before.round))
    names = [member.client for member in ground.members] if decision.clients is None else decision.clients
    plans = [sent.told(plan_for(name, session, here.name, ground, before, decision)) for name in names]

    with ClientRuns("trains", decision.round) as runs:
        taken = federation(here.name).train(plans, weights, spool, runs, sent.path)
        found = without_outliers(taken, spool, weights, session.aggregation.quarantine_factor)
        outliers = [r for r in found.refusals if r not in taken.refusals]
        federation(here.name).put_aside(outliers, decision.round)
        for refusal in outliers:
            runs.refused(refusal)
    for update in found.updates:
        runs.say(update.client, f": {measured(update)}")
    for refusal in found.refusals:
        runs.say(refusal.client, f" refused: {refusal.reason}")
    if len(found.updates) < session.federation.min_updates:
        reasons = "; ".join(f"{r.client}: {r.reason}" for r in found.refusals)
        raise RoundIncomplete(
            f"round {decision.round}: {len(found.updates)} good updates, expected at least "
            f"{session.federation.min_updates} ({reasons}); finished ones are kept"
        )
    relative = [u.model_copy(update={"path": here.relative(Path(u.path))}) for u in found.updates]
    return Trained(updates=tuple(relative), refusals=found.all_refusals, sent_bytes=sent.bytes)


def plan_for(
    client: str, session: Session, name: str, ground: "Ground", before: Checkpoint, decision: Decision
) -> RoundPlan:
    """What one client is told about a round."""
    return RoundPlan(
        terms=terms_of(session, name),
        round=decision.round,
        client=client,
        recipe=ground.recipe,
        global_digest=before.digest,
        statistics=ground.statistics if session.normalization == "pooled" else None,
        lr=client_lr(decision, client),
        mu=decision.mu,
        training=session.training,
        scheduler=session.scheduler,
        control=session.aggregation.strategy == "scaffold",
    )


@task(task_run_name="aggregate round {last.next_round}", cache_policy=NO_CACHE)
def aggregate_updates(
    session: Session, folder: str, ground: "Ground", last: RoundRecord, updates: Sequence[Update]
) -> Averaged:
    """New global weights of the updates, as the session's strategy makes them."""
    from zk0.aggregation.aggregate import aggregate
    from zk0.aggregation.privacy import session_secret, spent
    from zk0.aggregation.strategy import Terms

    here, number = SessionFolder(Path(folder)), last.next_round
    absolute = [u.model_copy(update={"path": str(here.path / u.path)}) for u in updates]
    settings, state = session.aggregation, {one.slot: here.path / one.path for one in last.server_state}
    terms = Terms(settings, number, state, len(ground.members), session_secret(here.privacy_key, settings))
    target = here.weights(number)
    forget_pages(here.weights(number - 2))  # no client reads them any more
    made = aggregate(absolute, here.path / last.checkpoint.path, target, terms, threads())
    moved = f"moved by {made.param_update_norm:.4g}, digest {made.digest[:12]}"
    privacy = spent(settings, len(updates), last.privacy)
    told = f"; epsilon {privacy.epsilon:.3g} at delta {privacy.delta:g}" if privacy else ""
    say(f"round {number}: {len(updates)} updates, {settings.strategy}, {moved}{told}")
    return Averaged(
        checkpoint=Checkpoint(round=number, path=here.relative(target), digest=made.digest, bytes=made.bytes),
        contributions=made.contributions,
        param_update_norm=made.param_update_norm,
        privacy=privacy,
        server_state=tuple(one.model_copy(update={"path": here.relative(Path(one.path))}) for one in made.server_state),
    )


def threads() -> int:
    """Threads that work for the server while no client does."""
    return os.cpu_count() or 1


@task(
    task_run_name="checkpoint round {record.round}",
    cache_policy=NO_CACHE,
    retries=2,
    retry_delay_seconds=1,
    retry_condition_fn=is_transient,
)
def save_checkpoint(session: Session, folder: str, ground: "Ground", record: RoundRecord) -> str:
    """A complete LeRobot policy folder with its card."""
    from zk0.public import public_metrics
    from zk0.report.card import model_card
    from zk0.training.judge import save_checkpoint as save

    here = SessionFolder(Path(folder))
    target = here.checkpoint(record.round)
    ledger = Ledger(here.ledger)
    history = [*ledger.read(), record]
    extra = {
        "README.md": model_card(session, ground.members, history, ledger.root_with(record)),
        "metrics.json": public_metrics(record),
    }
    weights = (here.path / record.checkpoint.path, record.checkpoint.digest)
    save(session, ground.recipe, ground.statistics, weights, target, extra)
    return here.relative(target)


@task(task_run_name="record round {record.round}", cache_policy=NO_CACHE)
def finish_round(session: Session, folder: str, record: RoundRecord) -> tuple[RoundRecord, ...]:
    """Append the round to the ledger, once; only then is it finished, and what it was made of may go."""
    here = SessionFolder(Path(folder))
    ledger = Ledger(here.ledger)
    ledger.append(record)
    finished = ledger.read()
    say(f"round {record.round}: recorded after {record.seconds:.1f} s; {memory_told()}")
    if not session.keep_updates:
        for file in here.updates(record.round).glob("*.safetensors"):
            file.unlink(missing_ok=True)
    for before in finished[:-1]:
        here.sent(before.round).unlink(missing_ok=True)
        for state in before.server_state:
            (here.path / state.path).unlink(missing_ok=True)
    return finished


@task(task_run_name="give receipts", cache_policy=NO_CACHE)
def give_receipts(session: Session, folder: str, history: Sequence[RoundRecord]) -> None:
    """Each client learns how to prove that its updates were averaged; one that is gone is told, and no loss."""
    from zk0.federation.open import federation

    here = SessionFolder(Path(folder))
    averaged = sorted({update.client for record in history for update in record.updates})
    of_clients = {client: merkle.receipts(history, client) for client in averaged}
    for refusal in federation(here.name).give_receipts(terms_of(session, here.name), of_clients):
        say(f"{refusal.client} has no receipts: {refusal.reason}")


def take_up(folder: str) -> tuple[RoundRecord, ...]:
    """The finished rounds of a session; the last one's weights and state must be those that the ledger names.

    Raises:
        CheckpointError: they are not.
        LedgerError: the ledger contradicts itself.
    """
    here = SessionFolder(Path(folder))
    here.forget_halves()
    history = Ledger(here.ledger).read()
    if history:
        last = history[-1]
        files: list[Checkpoint | ServerState] = [last.checkpoint, *last.server_state]
        try:
            for file in files:
                check_weights(here.path / file.path, file.digest)
        except CheckpointError as e:
            raise CheckpointError(
                f"round {last.round} cannot be taken up: {e}; restore the file or start a new session"
            ) from e
    return history


def now() -> str:
    """ISO 8601 with time zone."""
    return datetime.now().astimezone().isoformat(timespec="seconds")

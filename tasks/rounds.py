"""The steps of a round: train, aggregate, save a checkpoint, record. Each may run twice with the same result."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

from prefect import task
from prefect.cache_policies import NO_CACHE

from tasks.client_task_runs import ClientTaskRuns, answer_summary
from tasks.events import ProgressEvent, emit_progress, log_line
from tasks.retry import DISK_RETRIES, HUB_RETRIES, NODE_RETRIES, is_transient
from zk0.audit import merkle
from zk0.audit.ledger import Ledger
from zk0.diagnostics import memory_summary
from zk0.processes import collect_round_garbage
from zk0.records import (
    BufferedRound,
    Checkpoint,
    Contribution,
    PolicyRecipe,
    PrivacySpent,
    Record,
    Refusal,
    Rollout,
    RoundDecision,
    RoundRecord,
    ServerState,
    StatisticsGroup,
    Update,
)
from zk0.rules.buffered_rounds import staleness_factor
from zk0.rules.participation import check_enough_updates
from zk0.rules.selection import select_round
from zk0.settings.plans import session_terms
from zk0.settings.session import Session
from zk0.storage.atomic import atomic_write_text
from zk0.storage.disk_space import drop_page_cache
from zk0.storage.round_files import remove_finished_round_files
from zk0.storage.session_folder import SessionFolder

if TYPE_CHECKING:
    from zk0.evaluation.session_setup import SessionSetup
    from zk0.federation.protocol.replies import CollectedUpdates


class RoundUpdates(Record):
    """The clients' updates of one round."""

    updates: tuple[Update, ...]
    refusals: tuple[Refusal, ...]
    """Of every attempt: a client that was refused first may be among the updates of a later attempt."""
    sent_bytes: int | None = None
    """Size of the global weights that each client downloaded."""
    buffered: BufferedRound | None = None
    """How a buffered round came about."""


class AggregatedRound(Record):
    """The new global weights, and how each client's update compares to them."""

    checkpoint: Checkpoint
    contributions: tuple[Contribution, ...]
    param_update_norm: float
    server_state: tuple[ServerState, ...]
    privacy: PrivacySpent | None


@contextmanager
def stage_timer(seconds: dict[str, float], stage: str) -> Iterator[None]:
    """Add the duration of the block to `seconds[stage]`."""
    started = perf_counter()
    yield
    seconds[stage] = seconds.get(stage, 0.0) + perf_counter() - started


@task(task_run_name="build {session.policy.path}", cache_policy=NO_CACHE, **HUB_RETRIES)
def build_initial_policy(
    session: Session, folder: str, history: Sequence[RoundRecord]
) -> tuple[PolicyRecipe, Checkpoint]:
    """Build the policy of round 0 and write its trainable weights; a resumed session must build the same.

    Raises:
        CheckpointError: the policy's weights are not those with which the session started.
    """
    from zk0.resources.disk_limit import announce_disk_use
    from zk0.resources.session_needs import resource_lines, session_needs

    if not history:
        announce_disk_use(Path(folder), session_needs(session).estimate().disk)
        for line in resource_lines(session):
            log_line(line)
    emit_progress(ProgressEvent(kind="stage", text="loading LeRobot"))
    from zk0.evaluation.global_model import build_start_policy

    emit_progress(ProgressEvent(kind="stage", text=f"building the policy {session.policy.path}"))
    here = SessionFolder(Path(folder))
    target = here.weights(0)
    recipe, digest, size = build_start_policy(session, target, history[0].checkpoint.digest if history else None)
    log_line(f"policy {session.policy.path}: {size / 1e6:.1f} MB of trainable weights, digest {digest[:12]}")
    return recipe, Checkpoint(round=0, path=here.relative(target), digest=digest, bytes=size)


@task(task_run_name="train round {decision.round}", cache_policy=NO_CACHE, retry_condition_fn=is_transient)
def train_clients(
    session: Session, folder: str, setup: "SessionSetup", history: Sequence[RoundRecord], decision: RoundDecision
) -> RoundUpdates:
    """Let the clients of this round train from the global weights; a retry asks only those without a result.

    Raises:
        RoundIncomplete: fewer than `federation.min_updates` good updates; Prefect retries the task.
    """
    from zk0.evaluation.client_plans import client_round_plan
    from zk0.federation.open import get_federation
    from zk0.federation.protocol.downlink import encode_global_weights

    here, number, before = SessionFolder(Path(folder)), decision.round, history[-1].checkpoint
    weights, spool = here.path / before.path, here.updates(number)
    control = here.server_control(before.round)
    sent = encode_global_weights(session.federation, weights, here.sent_weights(before.round), control)
    names = [member.client for member in setup.members] if decision.clients is None else decision.clients
    plans = [sent.with_wire(client_round_plan(name, session, here.name, setup, before, decision)) for name in names]

    with ClientTaskRuns("trains", number, len(plans) <= session.tracking.client_task_runs) as runs:
        collected = get_federation(here.name).train(plans, weights, spool, runs, sent.path)
        return usable_updates(session, here, number, collected, runs).model_copy(update={"sent_bytes": sent.bytes})


def usable_updates(
    session: Session, here: SessionFolder, number: int, collected: "CollectedUpdates", runs: ClientTaskRuns
) -> RoundUpdates:
    """Return the updates of a round without norm outliers, and log each answer.

    Args:
        session: the settings.
        here: the session's folder.
        number: the round.
        collected: the valid updates.
        runs: the clients' task runs.

    Raises:
        RoundIncomplete: fewer than `federation.min_updates` are left.
    """
    from zk0.federation.open import get_federation
    from zk0.federation.protocol.quarantine import quarantine_norm_outliers

    spool, factor = here.updates(number), session.aggregation.quarantine_factor
    found = quarantine_norm_outliers(collected, spool, here.weights(number - 1), factor)
    outliers = [r for r in found.refusals if r not in collected.refusals]
    get_federation(here.name).record_quarantined(outliers, number)
    for refusal in outliers:
        runs.mark_refused(refusal)
    for update in found.updates:
        runs.log_line(update.client, f": {answer_summary(update)}")
    for refusal in found.refusals:
        runs.log_line(refusal.client, f" refused: {refusal.reason}")
    check_enough_updates(number, found.updates, found.refusals, session.federation.min_updates)
    relative = [u.model_copy(update={"path": here.relative(Path(u.path))}) for u in found.updates]
    return RoundUpdates(updates=tuple(relative), refusals=found.all_refusals)


@task(task_run_name="aggregate round {last.next_round}", cache_policy=NO_CACHE, **DISK_RETRIES)
def aggregate_updates(
    session: Session, folder: str, setup: "SessionSetup", last: RoundRecord, updates: Sequence[Update]
) -> AggregatedRound:
    """Aggregate the updates into new global weights with the session's strategy."""
    from zk0.aggregation.aggregate import aggregate
    from zk0.aggregation.privacy import privacy_spent, session_secret
    from zk0.aggregation.reduction_plan import AggregationTerms
    from zk0.aggregation.stale_updates import StaleStart

    here, number = SessionFolder(Path(folder)), last.next_round
    absolute = [u.model_copy(update={"path": str(here.path / u.path)}) for u in updates]
    settings, state = session.aggregation, {one.slot: here.path / one.path for one in last.server_state}
    secret, limit = session_secret(here.privacy_key, settings), settings.max_share_factor
    stale = {
        u.client: StaleStart(here.weights(u.round - 1), staleness_factor(number - u.round, session.buffer))
        for u in updates
        if u.round < number
    }
    terms = AggregationTerms(settings, number, state, len(setup.members), secret, limit, stale)
    target = here.weights(number)
    drop_page_cache(here.weights(number - 2))  # no client reads them any more
    made = aggregate(absolute, here.path / last.checkpoint.path, target, terms, aggregation_threads())
    clients = sum(update.client_count for update in updates)
    privacy = privacy_spent(settings, clients, last.privacy)
    norm = f"update norm {made.param_update_norm:.4g}, digest {made.digest[:12]}"
    epsilon = f"; epsilon {privacy.epsilon:.3g} at delta {privacy.delta:g}" if privacy else ""
    log_line(f"round {number}: {clients} updates, {settings.strategy}, {norm}{epsilon}")
    return AggregatedRound(
        checkpoint=Checkpoint(round=number, path=here.relative(target), digest=made.digest, bytes=made.bytes),
        contributions=made.contributions,
        param_update_norm=made.param_update_norm,
        privacy=privacy,
        server_state=tuple(one.model_copy(update={"path": here.relative(Path(one.path))}) for one in made.server_state),
    )


def aggregation_threads() -> int:
    """Return the number of threads for an aggregation: all cores, because no client trains meanwhile."""
    return os.cpu_count() or 1


@task(task_run_name="checkpoint round {record.round}", cache_policy=NO_CACHE, **HUB_RETRIES)
def save_round_checkpoint(session: Session, folder: str, setup: "SessionSetup", record: RoundRecord) -> RoundRecord:
    """Save a complete LeRobot policy folder with its model card; return the record with the digests of its files.

    The round is the next one of the ledger, or in it already; then its record stays as it is, and the digests are
    recorded in the file that continues the ledger (`zk0.audit.policy_digests`).
    """
    from zk0.audit.policy_digests import record_late_policy
    from zk0.evaluation.global_model import save_policy_checkpoint
    from zk0.storage.redaction import public_metrics

    here = SessionFolder(Path(folder))
    finished = Ledger(here.ledger).read()
    recorded, files = record, dict[str, str]()

    def extra_files(digests: Mapping[str, str]) -> dict[str, str]:
        nonlocal recorded
        files.update(digests)
        if record.round >= len(finished):
            recorded = record.model_copy(update={"policy_files": dict(digests)})
        card = _round_card(session, here, setup, [*finished[: record.round], recorded], digests)
        return {"README.md": card, "metrics.json": public_metrics(recorded)}

    weights = (here.path / record.checkpoint.path, record.checkpoint.digest)
    save_policy_checkpoint(session, setup, weights, here.checkpoint(record.round), extra_files)
    if not recorded.policy_files:
        record_late_policy(here, record.round, files)
    return recorded


@task(task_run_name="model cards", cache_policy=NO_CACHE, **DISK_RETRIES)
def add_attempts_to_cards(session: Session, folder: str, setup: "SessionSetup", history: Sequence[RoundRecord]) -> None:
    """Write the model card of each saved policy again that made attempts in the simulator since it was saved."""
    from zk0.storage.results import read_rollouts
    from zk0.storage.sha256_sums import renew_sums, sha256_of_folder

    here = SessionFolder(Path(folder))
    rollouts = read_rollouts(here.rollouts_folder)
    for number in sorted({rollout.round for rollout in rollouts if rollout.round is not None}):
        saved = here.checkpoint(number)
        if saved.is_dir():
            found = sha256_of_folder(saved)
            digests = {name: found[name] for name in found if name not in ("README.md", "metrics.json")}
            card = _round_card(session, here, setup, history[: number + 1], digests, rollouts)
            atomic_write_text(saved / "README.md", card)
            renew_sums(saved, editable=("README.md",))


def _round_card(
    session: Session,
    here: SessionFolder,
    setup: "SessionSetup",
    history: Sequence[RoundRecord],
    digests: Mapping[str, str],
    rollouts: Sequence[Rollout] = (),
) -> str:
    """Return the model card of the policy of the history's last round."""
    from zk0.report.model_card import CardProof, model_card

    groups = setup.groups or (StatisticsGroup.of_all(setup.statistics, session.contract.units),)
    proof = CardProof(Ledger(here.ledger).root_with(history[-1]), digests, setup.recipe.frozen_digest)
    attempts = [rollout for rollout in rollouts if rollout.round is None or rollout.round <= history[-1].round]
    notes, policy_type = setup.dataset_notes, setup.recipe.type
    return model_card(session, setup.members, history, proof, groups, attempts, notes, policy_type)


@task(task_run_name="record round {record.round}", cache_policy=NO_CACHE, **DISK_RETRIES)
def record_round(session: Session, folder: str, record: RoundRecord) -> tuple[RoundRecord, ...]:
    """Append the round to the ledger, once, and return all finished rounds.

    With its line in the ledger the round is finished; files that nothing needs any more are then removed.

    Raises:
        DiskFull: the session's folder still holds more than it may.
    """
    from zk0.resources.disk_limit import check_disk_limit

    here = SessionFolder(Path(folder))
    ledger = Ledger(here.ledger)
    ledger.append(record)
    finished = ledger.read()
    log_line(f"round {record.round}: recorded after {record.seconds:.1f} s; {memory_summary()}")
    remove_finished_round_files(here, finished, session, select_round(session, finished, ()).best)
    check_disk_limit(session, here.path)
    collect_round_garbage()
    return finished


@task(task_run_name="send receipts", cache_policy=NO_CACHE, **NODE_RETRIES)
def send_receipts(session: Session, folder: str, history: Sequence[RoundRecord]) -> None:
    """Send each client the receipts of its updates in the ledger; log which clients are not reached."""
    from zk0.federation.open import get_federation

    here = SessionFolder(Path(folder))
    updates = [update for record in history for update in record.updates]
    aggregated = sorted({name for one in updates for name in (one.summed.clients if one.summed else (one.client,))})
    receipts = {client: merkle.client_receipts(history, client) for client in aggregated}
    for refusal in get_federation(here.name).send_receipts(session_terms(session, here.name), receipts):
        log_line(f"{refusal.client} has no receipts: {refusal.reason}")


def local_timestamp() -> str:
    """Return the time now in ISO 8601, with the time zone of this machine."""
    return datetime.now().astimezone().isoformat(timespec="seconds")

"""Key results of a session: the few numbers at the top of its report."""

from collections.abc import Sequence
from math import fsum

from zk0.records import Evaluation, Member, Record, Rollout, RoundRecord
from zk0.report.metrics import sorted_by_round, used_updates
from zk0.report.number_format import DASH, count, duration, fixed, megabytes, percent, spaced_timestamp
from zk0.report.policy_text import policy_text
from zk0.report.tables.rollout_tables import rollouts_of_round, shown_rounds
from zk0.settings.session import Session
from zk0.stats.intervals import EpisodeMetric, evaluation_estimate, wilson_interval


class KeyResult(Record):
    """One number with its unit or interval, and a note to compare it with."""

    title: str
    value: str
    unit: str = ""
    note: str

    @property
    def text(self) -> str:
        """Value and unit on one line."""
        return f"{self.value} {self.unit}".rstrip()


class StageShare(Record):
    """Time of one stage over all rounds."""

    stage: str
    seconds: float
    percent: float
    """Of the time of all rounds."""


def key_results(
    session: Session, members: Sequence[Member], history: Sequence[RoundRecord], rollouts: Sequence[Rollout]
) -> list[KeyResult]:
    """Loss, action error, success rate, rounds, clients, frames, size of the weights, privacy budget and time."""
    rows = sorted_by_round(history)
    used, rejected = sum(u.client_count for r in rows for u in used_updates(r)), sum(len(r.refusals) for r in rows)
    sent = sum(u.bytes for r in rows for u in r.updates)
    frames = sum(m.train_frames for m in members)
    return [
        *_evaluation_results(session, rows),
        _success_rate(rollouts),
        KeyResult(
            title="Rounds",
            value=count(rows[-1].round if rows else None),
            unit=f"of {session.rounds}",
            note=f"{count(used)} updates used, {count(rejected)} rejected",
        ),
        KeyResult(title="Clients", value=count(len(members)), note=f"{_datasets(members)}, which stayed with them"),
        KeyResult(title="Training frames", value=count(frames), note=f"{_episodes(members)} episodes"),
        KeyResult(
            title="Trained weights",
            value=megabytes(rows[-1].checkpoint.bytes if rows else None),
            note=f"{megabytes(sent)} of updates in total",
        ),
        *_privacy(rows),
        KeyResult(
            title="Time",
            value=duration(fsum(r.seconds for r in rows) if rows else None),
            note="all finished rounds, with preparation",
        ),
    ]


def session_subtitle(session: Session, history: Sequence[RoundRecord], policy_type: str) -> str:
    """Policy, training settings and time of the last round, in one line."""
    training = session.training
    steps, epochs = training.local_steps, training.local_epochs
    length = f"{count(steps)} optimizer steps" if steps else f"{count(epochs)} local epochs"
    parts = [
        f"{policy_text(policy_type).title} ({session.policy.path})",
        f"{length} per round",
        f"batch {training.batch_size}",
    ]
    parts += [f"lr {training.lr:g}, {session.scheduler.type}", f"FedProx mu {training.proximal_mu:g}"]
    parts += [f"{session.federation.engine} engine", f"seed {session.seed}"]
    rows = sorted_by_round(history)
    finished = [f"last round finished {spaced_timestamp(rows[-1].finished_at)}"] if rows else []
    return " · ".join([*parts, *finished])


def stage_time_shares(history: Sequence[RoundRecord]) -> list[StageShare]:
    """Time of each stage over all rounds; `other` is the rest of the rounds' time. Empty if no stage was timed."""
    total_of_rounds = fsum(r.seconds for r in history)
    names = dict.fromkeys(stage for r in sorted_by_round(history) for stage in r.stage_seconds)
    by_stage = {name: fsum(r.stage_seconds.get(name, 0.0) for r in history) for name in names}
    if not by_stage or total_of_rounds <= 0:
        return []
    rest = max(total_of_rounds - fsum(by_stage.values()), 0.0)
    total = fsum(by_stage.values()) + rest
    return [
        StageShare(stage=name, seconds=seconds, percent=100 * seconds / total)
        for name, seconds in [*by_stage.items(), ("other", rest)]
    ]


def _privacy(rows: Sequence[RoundRecord]) -> list[KeyResult]:
    spent = rows[-1].privacy if rows else None
    if spent is None:
        return []
    factors = f"{spent.noise_multiplier:g} × clip {spent.clip_norm:g} / {count(spent.clients)} clients"
    noise = f"{count(spent.rounds)} rounds with noise of standard deviation {spent.noise_std:.3g} ({factors})"
    note = f"delta {spent.delta:g}, {noise}; for observers of the global weights"
    return [KeyResult(title="Client-level privacy", value=fixed(spent.epsilon, 2), unit="epsilon", note=note)]


def _datasets(members: Sequence[Member]) -> str:
    number = len({m.dataset for m in members})
    return f"{count(number)} dataset{'s' if number != 1 else ''}"


def _episodes(members: Sequence[Member]) -> str:
    return count(sum(len(m.split.train) for m in members))


def _evaluation_results(session: Session, rows: Sequence[RoundRecord]) -> tuple[KeyResult, KeyResult]:
    evaluations = [r.evaluation for r in rows if r.evaluation]
    last, first = (evaluations[-1], evaluations[0]) if evaluations else (None, None)
    units = session.contract.units if last else ""
    loss, error = (
        fixed(last.policy_loss if last else None, 3),
        fixed(last.action_error_degrees if last else None, 1),
    )
    loss_note, error_note = "dimensionless", "open loop"
    if first is not None and first is not last:
        loss_note = f"{fixed(first.policy_loss, 3)} in round {first.round}"
        error_note = f"{fixed(first.action_error_degrees, 1)} in round {first.round}"
    return (
        KeyResult(
            title="Policy loss, unseen data", value=loss, unit=_plus_minus(last, "policy_loss", 3), note=loss_note
        ),
        KeyResult(
            title="Action error, unseen data",
            value=error,
            unit=f"{_plus_minus(last, 'action_error_degrees', 1)} {units}".strip(),
            note=error_note,
        ),
    )


def _plus_minus(evaluation: Evaluation | None, metric: EpisodeMetric, places: int) -> str:
    """Half the width of the 95 % interval as text; empty without an interval."""
    half_width = evaluation_estimate(evaluation, metric).half_width if evaluation else None
    return "" if half_width is None else f"± {fixed(half_width, places)}"


def _success_rate(rollouts: Sequence[Rollout]) -> KeyResult:
    if not rollouts:
        return KeyResult(title="Closed-loop success", value=DASH, note="no attempt was made")
    last = rollouts_of_round(rollouts, shown_rounds(rollouts)[-1])
    successes, attempts = sum(r.success for r in last), len(last)
    low, high = wilson_interval(successes, attempts)
    note = f"95 % Wilson interval {percent(low)} to {percent(high)}"
    return KeyResult(title="Closed-loop success", value=count(successes), unit=f"of {attempts}", note=note)

"""The few numbers that sum a session up."""

from collections.abc import Sequence
from math import fsum

from zk0.interval import wilson
from zk0.records import Member, Record, Rollout, RoundRecord
from zk0.report.figures import DASH, count, duration, fixed, megabytes, moment, percent
from zk0.report.metrics import ordered
from zk0.report.rollout_tables import of_round, shown_rounds
from zk0.report.tables import half_width
from zk0.session import Session


class KeyFigure(Record):
    """One number, what belongs to it (interval or unit), and what to compare it with."""

    title: str
    value: str
    unit: str = ""
    note: str

    @property
    def text(self) -> str:
        """Value and unit on one line."""
        return f"{self.value} {self.unit}".rstrip()


class Share(Record):
    """What one stage took of the whole session."""

    stage: str
    seconds: float
    percent: float


def key_figures(
    session: Session, members: Sequence[Member], history: Sequence[RoundRecord], rollouts: Sequence[Rollout]
) -> list[KeyFigure]:
    """Loss, action error, success, rounds, clients, updates, size and time."""
    rows = ordered(history)
    used, refused = sum(len(r.contributions) for r in rows), sum(len(r.refusals) for r in rows)
    sent = sum(u.bytes for r in rows for u in r.updates)
    frames = sum(m.train_frames for m in members)
    return [
        *_unseen(session, rows),
        _success(rollouts),
        KeyFigure(
            title="Rounds",
            value=count(rows[-1].round if rows else None),
            unit=f"of {session.rounds}",
            note=f"{count(used)} updates used, {count(refused)} refused",
        ),
        KeyFigure(title="Clients", value=count(len(members)), note=f"{_datasets(members)}, none of which moved"),
        KeyFigure(title="Training frames", value=count(frames), note=f"{_episodes(members)} episodes"),
        KeyFigure(
            title="Trained weights",
            value=megabytes(rows[-1].checkpoint.bytes if rows else None),
            note=f"{megabytes(sent)} of updates in all",
        ),
        *_privacy(rows),
        KeyFigure(
            title="Time",
            value=duration(fsum(r.seconds for r in rows) if rows else None),
            note="of all finished rounds, preparation included",
        ),
    ]


def _privacy(rows: Sequence[RoundRecord]) -> list[KeyFigure]:
    spent = rows[-1].privacy if rows else None
    if spent is None:
        return []
    noise = f"noise {spent.noise_multiplier:g} × clip {spent.clip_norm:g} over {count(spent.clients)} clients"
    note = f"delta {spent.delta:g}, {count(spent.rounds)} rounds of {noise}; of the global weights only"
    return [KeyFigure(title="Privacy of a client", value=fixed(spent.epsilon, 2), unit="epsilon", note=note)]


def subtitle(session: Session, history: Sequence[RoundRecord]) -> str:
    """What was trained and how, in one line."""
    training = session.training
    steps, epochs = training.local_steps, training.local_epochs
    work = f"{count(steps)} optimizer steps" if steps else f"{count(epochs)} local epochs"
    parts = [f"SmolVLA ({session.policy.path})", f"{work} a round", f"batch {training.batch_size}"]
    parts += [f"lr {training.lr:g}, {session.scheduler.type}", f"FedProx mu {training.proximal_mu:g}"]
    parts += [f"{session.federation.engine} engine", f"seed {session.seed}"]
    rows = ordered(history)
    return " · ".join([*parts, *([f"last round finished {moment(rows[-1].finished_at)}"] if rows else [])])


def time_shares(history: Sequence[RoundRecord]) -> list[Share]:
    """Seconds of each stage over all rounds, and what no stage counted as `other`."""
    whole = fsum(r.seconds for r in history)
    names = dict.fromkeys(stage for r in ordered(history) for stage in r.stage_seconds)
    taken = {name: fsum(r.stage_seconds.get(name, 0.0) for r in history) for name in names}
    if not taken or whole <= 0:
        return []
    rest = max(whole - fsum(taken.values()), 0.0)
    total = fsum(taken.values()) + rest
    return [
        Share(stage=name, seconds=seconds, percent=100 * seconds / total)
        for name, seconds in [*taken.items(), ("other", rest)]
    ]


def _datasets(members: Sequence[Member]) -> str:
    number = len({m.dataset for m in members})
    return f"{count(number)} data set{'s' if number != 1 else ''}"


def _episodes(members: Sequence[Member]) -> str:
    return count(sum(len(m.split.train) for m in members))


def _unseen(session: Session, rows: Sequence[RoundRecord]) -> tuple[KeyFigure, KeyFigure]:
    judged = [r.evaluation for r in rows if r.evaluation]
    last, first = (judged[-1], judged[0]) if judged else (None, None)
    half = half_width(last.policy_loss_se) if last else None
    compared = first is not None and first is not last
    return (
        KeyFigure(
            title="Policy loss, unseen data",
            value=fixed(last.policy_loss if last else None, 3),
            unit="" if half is None else f"± {fixed(half, 3)}",
            note=f"{fixed(first.policy_loss, 3)} in round {first.round}" if first and compared else "dimensionless",
        ),
        KeyFigure(
            title="Action error, unseen data",
            value=fixed(last.action_error_degrees if last else None, 1),
            unit=session.contract.units if last else "",
            note=f"{fixed(first.action_error_degrees, 1)} in round {first.round}"
            if first and compared
            else "open loop",
        ),
    )


def _success(rollouts: Sequence[Rollout]) -> KeyFigure:
    if not rollouts:
        return KeyFigure(title="Closed-loop success", value=DASH, note="no attempt was made")
    last = of_round(rollouts, shown_rounds(rollouts)[-1])
    successes, attempts = sum(r.success for r in last), len(last)
    low, high = wilson(successes, attempts)
    note = f"95 % interval {percent(low)} to {percent(high)}"
    return KeyFigure(title="Closed-loop success", value=count(successes), unit=f"of {attempts}", note=note)

"""The tables of a report: the same cells for the page and for Markdown."""

from collections.abc import Sequence
from typing import Literal

from zk0.records import Contribution, Member, Moments, Record, RoundRecord, SetScore, Statistics, Update
from zk0.report.figures import count, fixed, listed, megabytes, number, percent, plus_minus, public_name
from zk0.report.metrics import Z_95, ordered
from zk0.session import Session


class Column(Record):
    """One head: what it holds and in which unit."""

    title: str
    unit: str = ""
    kind: Literal["text", "number", "code"] = "number"

    @property
    def head(self) -> str:
        """Title and unit on one line."""
        return f"{self.title} ({self.unit})" if self.unit else self.title


class Cell(Record):
    """What is shown, and what it is sorted by (None: missing, always last)."""

    text: str
    key: float | str | None = None


class Table(Record):
    """Rows of cells under columns; the first column names the row."""

    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]

    def plain(self) -> tuple[tuple[str, ...], tuple[tuple[str, ...], ...]]:
        """Heads and rows as text."""
        return tuple(c.head for c in self.columns), tuple(tuple(c.text for c in row) for row in self.rows)


def words(text: str) -> Cell:
    """A cell that is sorted as text."""
    return Cell(text=text, key=text.casefold())


def whole(value: int | None) -> Cell:
    """A cell with a whole number."""
    return Cell(text=count(value), key=value)


def decimal(value: float | None, places: int) -> Cell:
    """A cell with a fixed number of decimals."""
    return Cell(text=fixed(value, places), key=value)


def client_table(members: Sequence[Member], history: Sequence[RoundRecord]) -> Table:
    """What each client brought, learned and weighed."""
    columns = (
        Column(title="client", kind="text"),
        Column(title="data set", kind="text"),
        Column(title="episodes trained on"),
        Column(title="episodes held out"),
        Column(title="frames trained on"),
        Column(title="frames held out"),
        Column(title="first policy loss", unit="dimensionless"),
        Column(title="last policy loss", unit="dimensionless"),
        Column(title="update norm", unit="L2, last round"),
        Column(title="cosine to mean", unit="last round"),
        Column(title="weight", unit="%, last round"),
        Column(title="rounds used"),
        Column(title="refusals"),
    )
    rows = tuple(_client_row(m, ordered(history)) for m in members)
    return Table(caption="Clients", columns=columns, rows=rows)


def _client_row(member: Member, rows: Sequence[RoundRecord]) -> tuple[Cell, ...]:
    updates = [u for r in rows for u in r.updates if u.client == member.client]
    shares = [c for r in rows for c in r.contributions if c.client == member.client]
    first, last = (updates[0], updates[-1]) if updates else (None, None)
    share = shares[-1] if shares else None
    return (
        words(member.client),
        words(public_name(member.dataset)),
        whole(len(member.split.train)),
        whole(len(member.split.held_out)),
        whole(member.train_frames),
        whole(_held_out_frames(member)),
        decimal(_loss(first), 3),
        decimal(_loss(last), 3),
        decimal(_of(share, "update_norm"), 3),
        decimal(_of(share, "cosine_to_mean"), 3),
        Cell(text=percent(_of(share, "weight"), 1), key=_of(share, "weight")),
        whole(len(shares)),
        whole(sum(f.client == member.client for r in rows for f in r.refusals)),
    )


def _held_out_frames(member: Member) -> int | None:
    """Known only where the client has the whole data set to itself."""
    split, report = member.split, member.report
    if report.frames is None or report.episodes != len(split.train) + len(split.held_out):
        return None
    return report.frames - member.train_frames


def _loss(update: Update | None) -> float | None:
    return None if update is None else update.metrics.policy_loss


def _of(share: Contribution | None, name: Literal["weight", "update_norm", "cosine_to_mean"]) -> float | None:
    return None if share is None else getattr(share, name)


def round_table(session: Session, history: Sequence[RoundRecord]) -> Table:
    """What was decided for each round, why, and what came of it."""
    columns = (
        Column(title="round"),
        Column(title="policy loss ± 1.96 SE", unit="dimensionless"),
        Column(title="action error", unit=session.contract.units),
        Column(title="lr"),
        Column(title="mu"),
        Column(title="lr factor"),
        Column(title="updates used"),
        Column(title="refused"),
        Column(title="moved by", unit="L2"),
        Column(title="why", kind="text"),
    )
    return Table(caption="Rounds", columns=columns, rows=tuple(_round_row(r) for r in ordered(history)))


def _round_row(record: RoundRecord) -> tuple[Cell, ...]:
    judged, decided = record.evaluation, record.decision
    loss = judged.policy_loss if judged else None
    factors = decided.client_lr_factors if decided else {}
    why = decided.reason if decided else "start, nothing is trained"
    if factors:
        why += "; " + ", ".join(f"{client} × {number(factor)}" for client, factor in sorted(factors.items()))
    return (
        whole(record.round),
        Cell(text=plus_minus(loss, half_width(judged.policy_loss_se) if judged else None), key=loss),
        decimal(judged.action_error_degrees if judged else None, 2),
        _free(decided.lr if decided else None),
        _free(decided.mu if decided else None),
        _free(decided.lr_factor if decided else None),
        whole(len(record.contributions) if record.round else None),
        whole(len(record.refusals) if record.round else None),
        decimal(record.param_update_norm, 3),
        words(why),
    )


def _free(value: float | None) -> Cell:
    return Cell(text=number(value), key=value)


def half_width(se: float | None) -> float | None:
    """Half of a 95 % interval."""
    return None if se is None else Z_95 * se


def stages(history: Sequence[RoundRecord]) -> tuple[str, ...]:
    """The stages that took time, in the order of their first coming."""
    return tuple(dict.fromkeys(stage for r in ordered(history) for stage in r.stage_seconds))


def time_table(history: Sequence[RoundRecord]) -> Table:
    """Seconds by round and stage."""
    names = stages(history)
    columns = (
        Column(title="round"),
        *(Column(title=name, unit="s") for name in names),
        Column(title="whole round", unit="s"),
        Column(title="finished at", kind="text"),
    )
    rows = tuple(
        (
            whole(r.round),
            *(decimal(r.stage_seconds.get(name), 2) for name in names),
            decimal(r.seconds, 2),
            words(r.finished_at),
        )
        for r in ordered(history)
    )
    return Table(caption="Where the time went", columns=columns, rows=rows)


def refusal_table(history: Sequence[RoundRecord]) -> Table:
    """Updates that were not used, and why."""
    columns = (Column(title="round"), Column(title="client", kind="text"), Column(title="reason", kind="text"))
    rows = tuple((whole(r.round), words(f.client), words(f.reason)) for r in ordered(history) for f in r.refusals)
    return Table(caption="Refused updates", columns=columns, rows=rows)


def finding_table(members: Sequence[Member]) -> Table:
    """What the checks of the data sets had to say, once for each data set."""
    columns = tuple(
        Column(title=title, kind="text") for title in ("data set", "rule", "severity", "where", "found", "expected")
    )
    found = dict.fromkeys((public_name(m.dataset), f) for m in members for f in m.report.findings)
    rows = tuple(
        (words(name), words(f.rule), words(f.severity), words(f.where), words(f.found), words(f.expected))
        for name, f in found
    )
    return Table(caption="Findings of the data checks", columns=columns, rows=rows)


def set_table(session: Session, history: Sequence[RoundRecord]) -> Table:
    """The evaluation sets under the first and the last judged model."""
    judged = [r.evaluation for r in ordered(history) if r.evaluation]
    unit = session.contract.units
    first = {s.dataset: s for s in judged[0].sets} if len(judged) > 1 else {}
    before = f"round {judged[0].round}" if judged else "start"
    after = f"round {judged[-1].round}" if judged else "end"
    columns = (
        Column(title="evaluation set", kind="text"),
        Column(title="episodes"),
        Column(title="frames"),
        Column(title="policy loss ± 1.96 SE", unit=before),
        Column(title="policy loss ± 1.96 SE", unit=after),
        Column(title="action error", unit=f"{unit}, {before}"),
        Column(title="action error", unit=f"{unit}, {after}"),
    )
    rows = tuple(_set_row(s, first.get(s.dataset)) for s in judged[-1].sets) if judged else ()
    return Table(caption="Evaluation sets", columns=columns, rows=rows)


def _set_row(now: SetScore, then: SetScore | None) -> tuple[Cell, ...]:
    losses = [Cell(text=plus_minus(s.policy_loss, half_width(s.policy_loss_se)), key=s.policy_loss) if s else
              Cell(text=fixed(None, 0)) for s in (then, now)]  # fmt: skip
    errors = [decimal(s.action_error_degrees if s else None, 2) for s in (then, now)]
    return (words(public_name(now.dataset)), whole(now.episodes), whole(now.frames), *losses, *errors)


def joint_names(session: Session, width: int) -> tuple[str, ...]:
    """Names of `width` joints with their unit."""
    names = session.contract.joints if len(session.contract.joints) == width else tuple(map(str, range(width)))
    return tuple(n.removesuffix(".pos").replace("_", " ") for n in names)


def joint_unit(session: Session, joint: str) -> str:
    """Degrees, or the gripper's own scale."""
    return "0–100" if joint.startswith("gripper") else session.contract.units


def joint_table(session: Session, history: Sequence[RoundRecord]) -> Table:
    """Mean absolute action error, joint by joint, under the last judged model."""
    judged = [r.evaluation for r in ordered(history) if r.evaluation]
    scores = judged[-1].sets if judged else ()
    names = joint_names(session, max((len(s.joint_error_degrees) for s in scores), default=0))
    columns = (
        Column(title="evaluation set", kind="text"),
        *(Column(title=name, unit=joint_unit(session, name)) for name in names),
    )
    rows = tuple(
        (words(public_name(s.dataset)), *(decimal(e, 2) for e in s.joint_error_degrees))
        for s in scores
        if len(s.joint_error_degrees) == len(names)
    )
    return Table(caption="Action error by joint, last judged round", columns=columns, rows=rows)


def statistics_table(session: Session, statistics: Statistics | None) -> Table:
    """Pooled mean ± std, minimum and maximum of every joint."""
    columns = (
        Column(title="joint", kind="text"),
        Column(title="unit", kind="text"),
        *(Column(title=f"{what} {part}") for what in ("state", "action") for part in ("mean ± std", "min", "max")),
    )
    if statistics is None:
        return Table(caption="Pooled statistics", columns=columns, rows=())
    rows = tuple(
        (
            words(name),
            words(joint_unit(session, name)),
            *_moments(statistics.state, at),
            *_moments(statistics.action, at),
        )
        for at, name in enumerate(joint_names(session, len(statistics.state.mean)))
    )
    return Table(caption="Pooled statistics", columns=columns, rows=rows)


def _moments(moments: Moments, at: int) -> tuple[Cell, ...]:
    mean = Cell(text=plus_minus(moments.mean[at], moments.std[at], 2), key=moments.mean[at])
    return mean, decimal(moments.min[at], 2), decimal(moments.max[at], 2)


def digest_table(history: Sequence[RoundRecord]) -> Table:
    """The global weights of every round."""
    columns = (
        Column(title="round"),
        Column(title="SHA-256 of the global weights", kind="code"),
        Column(title="size"),
        Column(title="clients", kind="text"),
    )
    rows = tuple(
        (
            whole(r.round),
            words(r.checkpoint.digest),
            Cell(text=megabytes(r.checkpoint.bytes), key=r.checkpoint.bytes),
            words(listed(sorted(c.client for c in r.contributions))),
        )
        for r in ordered(history)
    )
    return Table(caption="Weights", columns=columns, rows=rows)

"""Tables of a report about closed-loop attempts: tasks before and after training, every attempt."""

from collections.abc import Sequence
from statistics import median

from zk0.interval import rate_difference, wilson
from zk0.records import Rollout
from zk0.report.figures import DASH, count, fixed, percent
from zk0.report.tables import Cell, Column, Table, decimal, free, whole, words

ALL = "all tasks"


def shown_rounds(rollouts: Sequence[Rollout]) -> tuple[int | None, ...]:
    """The first and the last round that moved the arm, or the only one."""
    rounds = sorted({r.round for r in rollouts}, key=lambda n: -1 if n is None else n)
    return tuple(dict.fromkeys((rounds[0], rounds[-1]))) if rounds else ()


def of_round(rollouts: Sequence[Rollout], round_number: int | None) -> list[Rollout]:
    """The attempts of one round's model."""
    return [r for r in rollouts if r.round == round_number]


def task_table(rollouts: Sequence[Rollout]) -> Table:
    """How often each task was done, first and last model side by side, with 95 % intervals; the same seeds for both."""
    shown = shown_rounds(rollouts)
    units = ["" if number is None else f"round {number}" for number in shown]
    columns = (
        Column(title="task", kind="text"),
        Column(title="trained on by", kind="text"),
        Column(title="attempts"),
        *(Column(title="success", unit=_joined(unit, "95 % Wilson")) for unit in units),
        *((Column(title="gain", unit="95 % paired"),) if len(shown) > 1 else ()),
        *(Column(title="median time to success", unit=_joined(unit, "s, simulated")) for unit in units),
        *(Column(title="smoothness", unit=_joined(unit, "SPARC")) for unit in units),
    )
    names = list(dict.fromkeys(r.task for r in rollouts))
    rows = [_task_row(name, [r for r in rollouts if r.task == name], shown) for name in names]
    if len(names) > 1:
        rows.append(_task_row(ALL, rollouts, shown))
    return Table(caption="Closed-loop success by task", columns=columns, rows=tuple(rows))


def _joined(*parts: str) -> str:
    return ", ".join(part for part in parts if part)


def _task_row(task: str, rollouts: Sequence[Rollout], shown: Sequence[int | None]) -> tuple[Cell, ...]:
    by_round = [of_round(rollouts, number) for number in shown]
    client = DASH if task == ALL else rollouts[0].client or "nobody: unseen"
    times = [[r.duration_seconds for r in some if r.success] for some in by_round]
    smoothness = [[r.smoothness for r in some if r.smoothness is not None] for some in by_round]
    return (
        words(task),
        words(client),
        whole(len(by_round[-1])),
        *(_success(some) for some in by_round),
        *((_gain(*by_round),) if len(by_round) > 1 else ()),
        *(decimal(median(some) if some else None, 1) for some in times),
        *(decimal(median(some) if some else None, 2) for some in smoothness),
    )


def _success(attempts: Sequence[Rollout]) -> Cell:
    if not attempts:
        return Cell(text=DASH)
    done = sum(r.success for r in attempts)
    low, high = wilson(done, len(attempts))
    return Cell(text=f"{count(done)} ({percent(low)} to {percent(high)})", key=done / len(attempts))


def _gain(before: Sequence[Rollout], after: Sequence[Rollout]) -> Cell:
    """Over the attempts that both made."""
    first = {(r.task, r.seed): r.success for r in before}
    pairs = [(first[r.task, r.seed], r.success) for r in after if (r.task, r.seed) in first]
    if not pairs:
        return Cell(text=DASH)
    difference, (low, high) = rate_difference([b for b, _ in pairs], [a for _, a in pairs])
    return Cell(text=f"{fixed(100 * difference, 0)} ({fixed(100 * low, 0)} to {percent(high)})", key=difference)


def attempt_table(rollouts: Sequence[Rollout]) -> Table:
    """Every attempt."""
    columns = (
        Column(title="task", kind="text"),
        Column(title="round"),
        Column(title="seed"),
        Column(title="result", kind="text"),
        Column(title="time", unit="s, simulated"),
        Column(title="steps"),
        Column(title="smoothness", unit="SPARC"),
        Column(title="policy loss", unit="open loop, this task"),
        Column(title="film", kind="text"),
    )
    rows = tuple(
        (
            words(r.task),
            whole(r.round),
            Cell(text=str(r.seed), key=r.seed),
            words("success" if r.success else "no success"),
            decimal(r.duration_seconds, 1),
            whole(r.steps),
            decimal(r.smoothness, 2),
            free(r.policy_loss),
            words(r.video or r.video_fault or DASH),
        )
        for r in rollouts
    )
    return Table(caption="Every closed-loop attempt", columns=columns, rows=rows)

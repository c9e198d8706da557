"""Tables of closed-loop attempts: success by task for the first and the last model, and every attempt."""

from collections.abc import Sequence
from statistics import median

from zk0.records import Rollout
from zk0.report.number_format import DASH, count, fixed, percent
from zk0.report.tables.table import Cell, Column, Table, decimal_cell, integer_cell, number_cell, text_cell
from zk0.stats.intervals import rate_difference, wilson_interval

ALL_TASKS = "all tasks"
UNSEEN = "none (unseen)"
"""Stands for the client of a task or dataset that no client has."""


def shown_rounds(rollouts: Sequence[Rollout]) -> tuple[int | None, ...]:
    """The first and the last round with closed-loop attempts, or the only one. None is a policy without a session."""
    rounds = sorted({r.round for r in rollouts}, key=lambda n: -1 if n is None else n)
    return tuple(dict.fromkeys((rounds[0], rounds[-1]))) if rounds else ()


def rollouts_of_round(rollouts: Sequence[Rollout], round_number: int | None) -> list[Rollout]:
    """The attempts of one round's model."""
    return [r for r in rollouts if r.round == round_number]


def task_table(rollouts: Sequence[Rollout]) -> Table:
    """Success rate of each task with its 95 % interval, for the first and the last model on the same seeds."""
    shown = shown_rounds(rollouts)
    units = ["" if number is None else f"round {number}" for number in shown]
    columns = (
        Column(title="task", kind="text"),
        Column(title="trained by client", kind="text"),
        Column(title="attempts"),
        *(Column(title="success", unit=_joined(unit, "95 % Wilson")) for unit in units),
        *((Column(title="change", unit="percentage points, 95 % paired"),) if len(shown) > 1 else ()),
        *(Column(title="median time to success", unit=_joined(unit, "s, simulated")) for unit in units),
        *(Column(title="smoothness", unit=_joined(unit, "SPARC")) for unit in units),
    )
    names = list(dict.fromkeys(r.task for r in rollouts))
    rows = [_task_row(name, [r for r in rollouts if r.task == name], shown) for name in names]
    if len(names) > 1:
        rows.append(_task_row(ALL_TASKS, rollouts, shown))
    return Table(caption="Closed-loop success by task", columns=columns, rows=tuple(rows))


def _joined(*parts: str) -> str:
    return ", ".join(part for part in parts if part)


def _task_row(task: str, rollouts: Sequence[Rollout], shown: Sequence[int | None]) -> tuple[Cell, ...]:
    by_round = [rollouts_of_round(rollouts, number) for number in shown]
    client = DASH if task == ALL_TASKS else rollouts[0].client or UNSEEN
    times = [[r.duration_seconds for r in attempts if r.success] for attempts in by_round]
    smoothness = [[r.smoothness for r in attempts if r.smoothness is not None] for attempts in by_round]
    return (
        text_cell(task),
        text_cell(client),
        integer_cell(len(by_round[-1])),
        *(_success_cell(attempts) for attempts in by_round),
        *((_change_cell(*by_round),) if len(by_round) > 1 else ()),
        *(decimal_cell(median(values) if values else None, 1) for values in times),
        *(decimal_cell(median(values) if values else None, 2) for values in smoothness),
    )


def _success_cell(attempts: Sequence[Rollout]) -> Cell:
    if not attempts:
        return Cell(text=DASH)
    successes = sum(r.success for r in attempts)
    low, high = wilson_interval(successes, len(attempts))
    return Cell(text=f"{count(successes)} ({percent(low)} to {percent(high)})", key=successes / len(attempts))


def paired_successes(before: Sequence[Rollout], after: Sequence[Rollout]) -> list[tuple[bool, bool]]:
    """Success before and after of each attempt (task and seed) that both models made."""
    first = {(r.task, r.seed): r.success for r in before}
    return [(first[r.task, r.seed], r.success) for r in after if (r.task, r.seed) in first]


def _change_cell(before: Sequence[Rollout], after: Sequence[Rollout]) -> Cell:
    """Change of the success rate over the attempts that both models made."""
    if not (pairs := paired_successes(before, after)):
        return Cell(text=DASH)
    difference, ends = rate_difference(*zip(*pairs, strict=True))
    points = [fixed(100 * value, 0) for value in (difference, *ends)]
    return Cell(text=f"{points[0]} ({points[1]} to {points[2]})", key=difference)


def attempt_table(rollouts: Sequence[Rollout]) -> Table:
    """Every closed-loop attempt."""
    columns = (
        Column(title="task", kind="text"),
        Column(title="round"),
        Column(title="seed"),
        Column(title="result", kind="text"),
        Column(title="time", unit="s, simulated"),
        Column(title="steps"),
        Column(title="smoothness", unit="SPARC"),
        Column(title="policy loss", unit="open loop, this task"),
        Column(title="video", kind="text"),
    )
    rows = tuple(
        (
            text_cell(r.task),
            integer_cell(r.round),
            Cell(text=str(r.seed), key=r.seed),
            text_cell("success" if r.success else "no success"),
            decimal_cell(r.duration_seconds, 1),
            integer_cell(r.steps),
            decimal_cell(r.smoothness, 2),
            number_cell(r.policy_loss),
            text_cell(r.video or r.video_error or DASH),
        )
        for r in rollouts
    )
    return Table(caption="Every closed-loop attempt", columns=columns, rows=rows)

"""Rules about what the robot was told."""

from collections.abc import Iterator

import numpy as np

from zk0.records import Finding
from zk0.robot.check import say
from zk0.robot.check.contents import Contents

MAX_TASK_CHARACTERS = 30


def task_text(contents: Contents) -> Iterator[Finding]:
    """Every task has a text; short ones are understood best."""
    if contents.tasks is None:
        return
    empty = [t for t, text in contents.tasks.items() if not text.strip()]
    if empty or not contents.tasks:
        yield Finding(
            rule="task-text",
            where="task table",
            found=f"no text for task {say.some(empty)}" if empty else "no task",
            expected="a sentence that says what to do",
        )
    long = [text for text in contents.tasks.values() if len(text) > MAX_TASK_CHARACTERS]
    if long:
        yield Finding(
            rule="task-length",
            severity="warning",
            where="task table",
            found=f"{len(long[0])} characters ({long[0][:60]})",
            expected=f"at most {MAX_TASK_CHARACTERS} characters recommended",
        )


def task_numbers(contents: Contents) -> Iterator[Finding]:
    """Tasks are numbered 0 to n-1 in order (LeRobot looks them up by position), and rows name only those."""
    if contents.tasks is None:
        return
    numbers = list(contents.tasks)
    if numbers != list(range(len(numbers))):
        yield Finding(
            rule="task-numbers",
            where="task table",
            found=f"tasks {say.some(numbers)}",
            expected=f"0 to {len(numbers) - 1} in order",
            repair="renumber",
        )
    rows = contents.rows
    if rows is None or rows.task is None:
        return
    unknown = ~np.isin(rows.task, numbers)
    if unknown.any():
        yield Finding(
            rule="task-unknown",
            where=f"data task_index of {say.episodes(rows.episodes_where(unknown))}",
            found=f"task {say.some(np.unique(rows.task[unknown]).tolist())}",
            expected=f"one of the tasks {say.some(numbers)}",
        )


RULES = (task_text, task_numbers)

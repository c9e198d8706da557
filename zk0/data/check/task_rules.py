"""Rules about the task texts, which the policy reads as its instruction."""

from collections.abc import Iterable, Iterator

import numpy as np

from zk0.data.check.contents import Contents
from zk0.data.check.reading_rules import TASK_TABLE
from zk0.data.check.rule import RuleGroup, Violation
from zk0.data.episode_table import TASKS_PATH, has_task_index
from zk0.name_lists import join_episodes, join_names

TASK_RULES = RuleGroup[[Contents], Violation]("Tasks", __name__)
MAX_TASK_CHARACTERS = 150
"""About 40 tokens of English; SmolVLA reads 48 and cuts off the rest."""


@TASK_RULES.rule("task-text")
def task_text(contents: Contents) -> Iterator[Violation]:
    """There is a task, and every task has a text."""
    if contents.tasks is None:
        return
    empty = [t for t, text in contents.tasks.items() if not text.strip()]
    if empty or not contents.tasks:
        found = f"no text for task {join_names(empty)}" if empty else "no task"
        yield Violation("task table", found, "a sentence that names what to do")


@TASK_RULES.rule("task-index", repairs=("index-tasks",))
def task_index(contents: Contents) -> Iterator[Violation]:
    """The texts in meta/tasks.parquet are its pandas index; LeRobot returns numbers for texts in a plain column."""
    if any(f.rule == TASK_TABLE.id for f in contents.unreadable):
        return
    if contents.tasks and contents.info and contents.info.is_v3 and not has_task_index(contents.folder):
        yield Violation(TASKS_PATH, "the texts in a plain column", "the texts as the index of the table")


@TASK_RULES.rule("task-length", severity="warning")
def task_length(contents: Contents) -> Iterator[Violation]:
    """A task text has at most 150 characters; the policy reads 48 tokens and cuts off the rest."""
    long = [text for text in (contents.tasks or {}).values() if len(text) > MAX_TASK_CHARACTERS]
    if long:
        yield Violation(
            where="task table",
            found=f"{len(long[0])} characters ({long[0][:60]})",
            expected=f"at most {MAX_TASK_CHARACTERS} characters recommended",
        )


@TASK_RULES.rule("task-numbers", repairs=("renumber",))
def task_numbers(contents: Contents) -> Iterator[Violation]:
    """The task table lists tasks 0 to n-1 in order; LeRobot looks them up by position."""
    numbers = list(contents.tasks or ())
    if numbers != list(range(len(numbers))):
        yield Violation("task table", f"tasks {join_names(numbers)}", f"0 to {len(numbers) - 1} in order")


@TASK_RULES.rule("task-lists", severity="warning")
def task_lists(contents: Contents) -> Iterator[Violation]:
    """The texts that the episode table states for an episode are those of its rows; LeRobot reads those of the rows."""
    rows, tasks = contents.rows, contents.tasks
    if tasks is None or rows is None or rows.task is None:
        return
    of_rows = {e: {tasks.get(t) for t in np.unique(rows.task[s]).tolist()} for e, s in contents.spans.items()}
    wrong = [e for e in contents.episodes or () if e.tasks and set(e.tasks) != of_rows.get(e.index, set(e.tasks))]
    wrong = [e for e in wrong if None not in of_rows[e.index]]  # task-unknown reports it
    if wrong:
        yield Violation(
            where=join_episodes([e.index for e in wrong]),
            found=f"{_quoted(wrong[0].tasks)} in the episode table, {_quoted(of_rows[wrong[0].index])} by the rows",
            expected="the same texts; correct the table of tasks, or task_index of the rows, if those are wrong",
            episodes=tuple(e.index for e in wrong),
        )


def _quoted(texts: Iterable[str | None]) -> str:
    return join_names(sorted(f"{text!r:.80}" for text in texts), 3)


@TASK_RULES.rule("task-unknown")
def task_unknown(contents: Contents) -> Iterator[Violation]:
    """The task_index of every row is one of the task table."""
    rows = contents.rows
    if contents.tasks is None or rows is None or rows.task is None:
        return
    numbers = list(contents.tasks)
    unknown = ~np.isin(rows.task, numbers)
    if unknown.any():
        yield Violation(
            where=f"data task_index of {join_episodes(rows.episodes_where(unknown))}",
            found=f"task {join_names(np.unique(rows.task[unknown]).tolist())}",
            expected=f"one of the tasks {join_names(numbers)}",
        )

"""The steps of a hyperparameter search: one session after the other, watched round by round, shown as a table."""

import json
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tomli_w
from prefect import task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE

from tasks.children import Child, session_command, zk0_command
from tasks.events import Event, say, tell
from zk0.errors import SettingsError
from zk0.folder import SessionFolder, toml_values, write_whole
from zk0.ledger import Ledger
from zk0.records import Record
from zk0.session import Session, apply_overrides, parse_session
from zk0.trials import Dimension, Objective, Outcome, TrialRow, best_of, loss_of

if TYPE_CHECKING:
    from zk0.search import Search, Trial

_POLL_SECONDS = 0.5


class Asked(Record):
    """What is searched, and where the search lives."""

    folder: str
    session: Session
    """What every trial starts from; paths are absolute."""
    space: dict[str, Dimension]
    objective: Objective
    keep_weights: bool


@contextmanager
def searching(asked: Asked) -> "Iterator[Search]":
    """The search in its folder, begun if there is none; trials that it hands out are nobody else's meanwhile."""
    from zk0.search import open_search

    with open_search(Path(asked.folder), asked.space, asked.session.seed) as search:
        yield search


@task(task_run_name="trial {number}", cache_policy=NO_CACHE)
def run_trial(number: int, asked: Asked, search: "Search", trial: "Trial") -> tuple[TrialRow, ...]:
    """A trial to its end or until it is pruned, taken up where it was if it was interrupted; all rows so far."""
    output = Path(asked.folder) / "trials" / f"{number:03d}"
    tell(Event(kind="stage", text=f"trial {number}: {_said(trial.settings)}"))
    say(f"trial {number}: {_said(trial.settings)}")
    started = time.monotonic()
    outcome, reason = _play(asked, trial, output)
    search.end(trial, outcome, time.monotonic() - started, reason)
    rows = search.rows()
    (row,) = [r for r in rows if r.number == number]
    if not asked.keep_weights:
        _forget_weights(output)
    say(f"trial {number} {row.outcome} after {row.rounds} round(s), loss {row.loss}{reason and f': {reason}'}")
    return rows


@task(task_run_name="results after {number} trials", cache_policy=NO_CACHE)
def show(number: int, asked: Asked, rows: Sequence[TrialRow]) -> None:
    """All trials as a table in the UI and as results.json, the best one as a session file that runs as it is."""
    here, best = Path(asked.folder), best_of(rows)
    write_whole(here / "results.json", json.dumps([r.model_dump(mode="json") for r in rows], indent=2))
    if best is not None:
        values = apply_overrides(toml_values(asked.session), best.settings)
        note = f"# The best of {number} trials (number {best.number}): loss {best.loss} after {best.rounds} rounds.\n"
        write_whole(here / "best.toml", note + tomli_w.dumps(values))
    ranked = sorted(rows, key=lambda r: (r.outcome != "finished", r.loss is None, r.loss))
    title = f"{number} trials; the best one is {here / 'best.toml'}" if best else f"{number} trials, none finished"
    create_table_artifact(table=[_row(r) for r in ranked], key="search", description=title)


def _play(asked: Asked, trial: Any, output: Path) -> tuple[Outcome, str]:
    """Run the trial's session, or take it up, and look at each finished round."""
    try:
        values = apply_overrides(toml_values(asked.session), {**trial.settings, "output_dir": str(output)})
        session = parse_session(values, f"trial {trial.number}")
    except SettingsError as e:
        return "failed", str(e)
    with zk0_command(session_command(session, output / "session.toml")) as child:
        if _worse(child, trial, output, asked.objective):
            return "pruned", "worse than the median of earlier trials at this round"
        code = child.process.wait()
        return ("finished", "") if code == 0 else ("failed", child.said())


def _worse(child: Child, trial: Any, output: Path, objective: Objective) -> bool:
    """Watch until the session ends; whether it is not worth going on with."""
    seen, over = 0, False
    while not over:
        over = child.process.poll() is not None
        history = [r for file in output.glob("*/ledger.jsonl") for r in Ledger(file).read()]
        for record in history[seen:]:
            loss = loss_of(record, objective)
            if record.round and loss is not None and trial.report(record.round, loss) and not over:
                return True
        seen = len(history)
        if not over:
            time.sleep(_POLL_SECONDS)
    return False


def _forget_weights(output: Path) -> None:
    for folder in output.glob("*/"):
        here = SessionFolder(folder)
        for part in (*here.path.glob("round-*"), here.path / "models"):
            shutil.rmtree(part, ignore_errors=True)


def _said(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} = {f'{v:.3g}' if isinstance(v, float) else v}" for name, v in settings.items())


def _row(row: TrialRow) -> dict[str, Any]:
    loss = None if row.loss is None else round(row.loss, 5)
    settings = {name: f"{v:.4g}" if isinstance(v, float) else v for name, v in row.settings.items()}
    head = {"trial": row.number, "outcome": row.outcome, "loss": loss, "rounds": row.rounds}
    return {**head, **settings, "seconds": round(row.seconds, 1), "why": row.reason}

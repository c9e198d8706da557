"""The steps of a hyperparameter search: run one session per trial, watch it round by round, write the results."""

import json
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect import task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE

from tasks.events import ProgressEvent, emit_progress, log_line
from tasks.retry import DISK_RETRIES
from tasks.subprocesses import Zk0Process, run_or_resume_arguments, zk0_process
from zk0.audit.ledger import Ledger
from zk0.errors import SettingsError
from zk0.records import Record
from zk0.settings.loading import override_session, to_toml
from zk0.settings.session import Session
from zk0.storage.atomic import atomic_write_text
from zk0.storage.session_folder import SessionFolder
from zk0.tuning.trials import Dimension, Objective, TrialOutcome, TrialResult, best_trial, objective_loss

if TYPE_CHECKING:
    from zk0.tuning.search import Search, Trial

_POLL_SECONDS = 0.5


class SearchRequest(Record):
    """What is searched, and the folder of the search."""

    folder: str
    session: Session
    """The session whose settings each trial changes; paths are absolute."""
    space: dict[str, Dimension]
    """Range or choices by dotted name of a setting."""
    objective: Objective
    keep_weights: bool


@contextmanager
def opened_search(request: SearchRequest) -> "Iterator[Search]":
    """Open the search in its folder, or start it; a trial that it hands out is reserved for this process meanwhile."""
    from zk0.tuning.search import open_search

    with open_search(Path(request.folder), request.space, request.session.seed) as search:
        yield search


@task(task_run_name="trial {number}", cache_policy=NO_CACHE, **DISK_RETRIES)
def run_trial(number: int, request: SearchRequest, search: "Search", trial: "Trial") -> tuple[TrialResult, ...]:
    """Run one trial until it ends or is pruned, and return the results of all finished trials.

    An interrupted trial resumes its session.
    """
    output = Path(request.folder) / "trials" / f"{number:03d}"
    emit_progress(ProgressEvent(kind="stage", text=f"trial {number}: {_settings_text(trial.settings)}"))
    log_line(f"trial {number}: {_settings_text(trial.settings)}")
    started = time.monotonic()
    outcome, reason = _run_session(request, trial, output)
    search.finish(trial, outcome, time.monotonic() - started, reason)
    results = search.finished_trials()
    (result,) = [r for r in results if r.number == number]
    if not request.keep_weights:
        _remove_weights(output)
    why = f": {reason}" if reason else ""
    log_line(f"trial {number} {result.outcome} after {result.rounds} round(s), loss {result.loss}{why}")
    return results


@task(task_run_name="results after {number} trials", cache_policy=NO_CACHE, **DISK_RETRIES)
def write_search_results(number: int, request: SearchRequest, results: Sequence[TrialResult]) -> None:
    """Write results.json, a table in the UI, and best.toml: the session file with the best trial's settings."""
    here, best = Path(request.folder), best_trial(results)
    atomic_write_text(here / "results.json", json.dumps([r.model_dump(mode="json") for r in results], indent=2))
    if best is not None:
        session = override_session(request.session, best.settings, f"trial {best.number}")
        note = f"# The best of {number} trials (number {best.number}): loss {best.loss} after {best.rounds} rounds.\n"
        atomic_write_text(here / "best.toml", note + to_toml(session))
    ranked = sorted(results, key=lambda r: (r.outcome != "finished", r.loss is None, r.loss))
    title = f"{number} trials; the best one is {here / 'best.toml'}" if best else f"{number} trials, none finished"
    create_table_artifact(table=[_row(r) for r in ranked], key="search", description=title)


def _run_session(request: SearchRequest, trial: "Trial", output: Path) -> tuple[TrialOutcome, str]:
    """Run the trial's session, or resume it; return its outcome and, unless it finished, the reason."""
    try:
        settings = {**trial.settings, "output_dir": str(output)}
        session = override_session(request.session, settings, f"trial {trial.number}")
    except SettingsError as e:
        return "failed", str(e)
    with zk0_process(run_or_resume_arguments(session, output / "session.toml")) as running:
        if _should_be_pruned(running, trial, output, request.objective):
            return "pruned", "worse than the median of earlier trials at this round"
        code = running.process.wait()
        return ("finished", "") if code == 0 else ("failed", running.last_lines())


def _should_be_pruned(running: Zk0Process, trial: "Trial", output: Path, objective: Objective) -> bool:
    """Report the loss of each finished round to the trial until the session ends, or until the trial is pruned."""
    reported, ended = 0, False
    while not ended:
        ended = running.process.poll() is not None
        history = [r for file in output.glob("*/ledger.jsonl") for r in Ledger(file).read()]
        for record in history[reported:]:
            loss = objective_loss(record, objective)
            if record.round and loss is not None and trial.report(record.round, loss) and not ended:
                return True
        reported = len(history)
        if not ended:
            time.sleep(_POLL_SECONDS)
    return False


def _remove_weights(output: Path) -> None:
    for folder in output.glob("*/"):
        here = SessionFolder(folder)
        for part in (*here.path.glob("round-*"), here.path / "models"):
            shutil.rmtree(part, ignore_errors=True)


def _settings_text(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} = {f'{v:.3g}' if isinstance(v, float) else v}" for name, v in settings.items())


def _row(result: TrialResult) -> dict[str, Any]:
    loss = None if result.loss is None else round(result.loss, 5)
    settings = {name: f"{v:.4g}" if isinstance(v, float) else v for name, v in result.settings.items()}
    head = {"trial": result.number, "outcome": result.outcome, "loss": loss, "rounds": result.rounds}
    return {**head, **settings, "seconds": round(result.seconds, 1), "reason": result.reason}

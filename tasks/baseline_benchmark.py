"""The steps of the benchmark against baselines: the federated session, local-only and centralized training, results."""

import json
from pathlib import Path

from prefect import task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE

from tasks.events import ProgressEvent, emit_progress, log_line
from tasks.retry import DISK_RETRIES
from tasks.subprocesses import newest_session, run_or_resume_arguments, run_zk0
from zk0.audit.ledger import Ledger
from zk0.errors import FederationError, SettingsError
from zk0.records import Record
from zk0.rules.selection import final_round
from zk0.settings.session import Session
from zk0.stats.baseline_comparison import (
    CENTRALIZED,
    BenchmarkModel,
    baseline_differences,
    model_averages,
    training_budget,
)
from zk0.stats.model_comparison import read_model_results
from zk0.storage.atomic import atomic_write_text
from zk0.storage.session_folder import SessionFolder

SAME_BATCHES = (
    "The centralized model makes as many optimizer steps as all clients together, with batches as large as a client's "
    "on average: steps and samples both equal those of the federation."
)
LARGER_BATCHES = (
    "The centralized model makes as many optimizer steps as one client, with batches as large as those of all clients "
    "together: it is as many steps away from the start as the federated model, with as many samples."
)


class BenchmarkRequest(Record):
    """What is compared, and the folder of its models and results."""

    folder: str
    session: Session
    """The federated session; each training seed replaces its seed; paths are absolute."""
    larger_batches: bool
    """The centralized model trains with larger batches instead of more steps."""

    def seed_folder(self, seed: int) -> Path:
        """Return the folder of all models of one training seed."""
        return Path(self.folder) / f"seed-{seed}"


def write_request(request: BenchmarkRequest) -> None:
    """Write the request into its folder; the same request again changes nothing.

    Raises:
        SettingsError: the folder holds a benchmark with other settings.
    """
    path = Path(request.folder) / "request.json"
    text = request.model_dump_json(indent=2, exclude={"folder"})
    if path.is_file() and path.read_text(encoding="utf-8") != text:
        raise SettingsError(f"{request.folder}: holds a benchmark with other settings; choose another folder")
    atomic_write_text(path, text)


@task(task_run_name="federated, seed {seed}", cache_policy=NO_CACHE, **DISK_RETRIES)
def train_federated(seed: int, request: BenchmarkRequest) -> str:
    """Run the federated session with one seed and return its folder.

    An interrupted session resumes; a finished one is only read.

    Raises:
        FederationError: the session fails.
    """
    here = request.seed_folder(seed)
    emit_progress(ProgressEvent(kind="stage", text=f"seed {seed}: federated training"))
    log_line(f"seed {seed}: federated training in {here}")
    return str(run_federated_session(request.session, seed, here).path)


def run_federated_session(session: Session, seed: int, here: Path) -> SessionFolder:
    """Run a session with another seed in `here/federated` and return its folder; a finished one is only read.

    Raises:
        FederationError: the session fails.
    """
    output_dir = here / "federated"
    if (found := newest_session(output_dir)) is not None and _is_finished(found, session):
        return found
    seeded = session.model_copy(update={"seed": seed, "output_dir": str(output_dir)})
    run_zk0(run_or_resume_arguments(seeded, here / "session.toml"), f"the session with seed {seed}", FederationError)
    if (made := newest_session(output_dir)) is None:
        raise FederationError(f"{here}: the session left no folder; see its output")
    return made


@task(task_run_name="{name}, seed {seed}", cache_policy=NO_CACHE, **DISK_RETRIES)
def train_baseline(name: str, seed: int, request: BenchmarkRequest, source: str) -> None:
    """Train and evaluate one baseline as the federated model is: one client alone, or all data in one place.

    Args:
        name: a client's name, or `CENTRALIZED`.
        seed: of training.
        request: the benchmark.
        source: folder of the federated session with this seed.
    """
    from zk0.client.baseline import Baseline

    emit_progress(ProgressEvent(kind="stage", text=f"seed {seed}: {name}"))
    client = None if name == CENTRALIZED else name
    folder = _baseline_folder(request.seed_folder(seed), client)
    history = Baseline(SessionFolder(Path(source)), folder, client, request.larger_batches).run()
    last = history[-1].evaluation
    loss = f": policy loss on unseen data {last.policy_loss:.4f}" if last else ""
    log_line(f"seed {seed}: {name}{loss}")


@task(task_run_name="results of {seeds} seeds", cache_policy=NO_CACHE, **DISK_RETRIES)
def write_benchmark_results(seeds: tuple[int, ...], request: BenchmarkRequest) -> str:
    """Compare all models and write results.json, report.html and a table in the UI; return the path of report.html.

    Raises:
        EvaluationError: the models were not evaluated on the same episodes and attempts.
    """
    from zk0.report.page.benchmark_page import method_notes, write_benchmark_page
    from zk0.report.tables.benchmark_tables import baseline_difference_table

    here = Path(request.folder)
    models = [model for seed in seeds for model in _models(seed, request)]
    tasks = [m.dataset.removeprefix("sim:") for m in request.session.local_clients()]
    rows = baseline_differences(models, shared_tasks={name for name in tasks if tasks.count(name) > 1})
    batches = LARGER_BATCHES if request.larger_batches else SAME_BATCHES
    notes = method_notes(request.session, models, batches)
    results = {
        "method": notes,
        "seeds": seeds,
        "differences": [{**r.model_dump(), "percent": r.percent} for r in rows],
        "models": [a.model_dump() for a in model_averages(models)],
        "training_budgets": [{"model": m.name, "seed": m.seed, **m.budget.model_dump()} for m in models],
    }
    atomic_write_text(here / "results.json", json.dumps(results, indent=2))
    page = here / "report.html"
    write_benchmark_page(page, request.session, models, rows, batches)
    heads, lines = baseline_difference_table(rows).as_text()
    table = [dict(zip(heads, line, strict=True)) for line in lines]
    create_table_artifact(table=table, key="federated-vs-centralized", description=f"{page}; {notes[0]}")
    return str(page)


def _models(seed: int, request: BenchmarkRequest) -> list[BenchmarkModel]:
    """Return all models of one training seed with their results: base, each client alone, federated, centralized."""
    here, batch_size = request.seed_folder(seed), request.session.training.batch_size
    source = newest_session(here / "federated")
    assert source is not None, "write_benchmark_results comes after train_federated"
    history = Ledger(source.ledger).read()
    federation, nothing = training_budget(history, batch_size), training_budget([], batch_size)
    base, last = read_model_results(source.path, 0), read_model_results(source.path, history[-1].round)
    local_only = [
        BenchmarkModel(
            kind="local-only",
            client=c.name,
            seed=seed,
            budget=training_budget(history, batch_size, c.name),
            results=read_model_results(_baseline_folder(here, c.name)),
        )
        for c in request.session.local_clients()
    ]
    folder = _baseline_folder(here, None)
    steps = sum(u.metrics.local_steps for r in Ledger(folder / "ledger.jsonl").read() for u in r.updates)
    return [
        BenchmarkModel(kind="base", seed=seed, budget=nothing, results=base),
        *local_only,
        BenchmarkModel(kind="federated", seed=seed, budget=federation, results=last),
        BenchmarkModel(
            kind=CENTRALIZED,
            seed=seed,
            budget=federation.model_copy(update={"optimizer_steps": steps}),
            results=read_model_results(folder),
        ),
    ]


def _baseline_folder(here: Path, client: str | None) -> Path:
    return here / CENTRALIZED if client is None else here / "local-only" / client


def _is_finished(source: SessionFolder, session: Session) -> bool:
    history = Ledger(source.ledger).read()
    return bool(history) and history[-1].round == final_round(session, history) and source.report.is_file()

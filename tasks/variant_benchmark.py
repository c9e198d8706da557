"""The steps of a comparison of settings: the session of each variant and seed, results."""

import json
from pathlib import Path

from prefect import task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE

from tasks.baseline_benchmark import run_federated_session
from tasks.events import ProgressEvent, emit_progress, log_line
from tasks.retry import DISK_RETRIES
from tasks.subprocesses import newest_session
from zk0.audit.ledger import Ledger
from zk0.errors import SettingsError
from zk0.records import Record
from zk0.settings.session import Session
from zk0.stats.model_comparison import read_model_results
from zk0.stats.variant_comparison import Variant, VariantRun, VariantSummary, variant_summaries
from zk0.storage.atomic import atomic_write_text

VARIANT_NOTE = (
    "Every variant starts from the same weights as the others of its seed and is evaluated on the same episodes and "
    "attempts. Intervals are 95 % over seeds and episodes or attempts; changes are paired."
)


class VariantRequest(Record):
    """What is compared, and the folder of all sessions and results."""

    folder: str
    variants: tuple[Variant, ...]
    """The first one is what the others are compared with."""
    sessions: tuple[Session, ...]
    """Of each variant; each training seed replaces its seed; paths are absolute."""

    def variant_folder(self, number: int, seed: int) -> Path:
        """Return the folder of one variant under one seed."""
        return Path(self.folder) / self.variants[number].folder / f"seed-{seed}"


def write_variant_request(request: VariantRequest) -> None:
    """Write the request into its folder; the same settings again, also with more variants, change no session.

    Raises:
        SettingsError: a variant in the folder has other settings.
    """
    for variant, session in zip(request.variants, request.sessions, strict=True):
        path = Path(request.folder) / variant.folder / "session.json"
        text = session.model_dump_json(indent=2)
        if path.is_file() and path.read_text(encoding="utf-8") != text:
            raise SettingsError(f"{path.parent}: holds sessions with other settings; choose another --out")
        atomic_write_text(path, text)


@task(task_run_name="{variant}, seed {seed}", cache_policy=NO_CACHE, **DISK_RETRIES)
def train_variant(variant: str, number: int, seed: int, request: VariantRequest) -> None:
    """Run the session of one variant with one seed; an interrupted one resumes, a finished one is only read.

    Raises:
        FederationError: the session fails.
    """
    emit_progress(ProgressEvent(kind="stage", text=f"seed {seed}: {variant}"))
    log_line(f"seed {seed}: {variant} in {request.variant_folder(number, seed)}")
    run_federated_session(request.sessions[number], seed, request.variant_folder(number, seed))


@task(task_run_name="results of {seeds} seeds", cache_policy=NO_CACHE, **DISK_RETRIES)
def write_variant_results(seeds: tuple[int, ...], request: VariantRequest) -> str:
    """Compare all variants, write tables, numbers and charts, and a table in the UI; return the path of table.md.

    Raises:
        EvaluationError: the variants were not evaluated on the same episodes and attempts.
    """
    from zk0.report.tables.variant_tables import variant_table

    summaries = compare_variants(seeds, request)
    heads, lines = variant_table(summaries).as_text()
    rows = [dict(zip(heads, line, strict=True)) for line in lines]
    page = Path(request.folder) / "table.md"
    create_table_artifact(table=rows, key="settings-comparison", description=f"{page}; {VARIANT_NOTE}")
    return str(page)


def compare_variants(seeds: tuple[int, ...], request: VariantRequest) -> tuple[VariantSummary, ...]:
    """Read the results of all sessions, write the files of the comparison, and return its rows.

    Raises:
        EvaluationError: the variants were not evaluated on the same episodes and attempts.
    """
    from zk0.report.variant_files import write_variant_files

    here = Path(request.folder)
    runs = [_variant_run(number, seed, request) for seed in seeds for number in range(len(request.variants))]
    summaries = variant_summaries(runs)
    note = f"{len(seeds)} seed(s). {VARIANT_NOTE}"
    results = {"method": note, "seeds": seeds, "summaries": [one.model_dump() for one in summaries]}
    atomic_write_text(here / "results.json", json.dumps(results, indent=2))
    write_variant_files(here, runs, summaries, note)
    return summaries


def _variant_run(number: int, seed: int, request: VariantRequest) -> VariantRun:
    source = newest_session(request.variant_folder(number, seed) / "federated")
    assert source is not None, "write_variant_results comes after train_variant"
    last = Ledger(source.ledger).read()[-1].round
    return VariantRun(variant=request.variants[number].name, seed=seed, results=read_model_results(source.path, last))

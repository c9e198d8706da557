"""The steps of federated against centralised: the session, its baselines, what the two come to."""

import json
from pathlib import Path

from prefect import task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE

from tasks.children import begun_in, run_zk0, session_command
from tasks.events import Event, say, tell
from zk0.comparison import read_measured
from zk0.contrast import CENTRALISED, Contestant, averages, contrasts, work_of
from zk0.errors import FederationError, SettingsError
from zk0.folder import SessionFolder, write_whole
from zk0.ledger import Ledger
from zk0.records import Record
from zk0.session import Session

SAME_BATCHES = (
    "The centralised model makes as many steps as all clients together, each as large as a client's on average: both "
    "steps and samples add up to the federation's."
)
LARGER_BATCHES = (
    "The centralised model makes as many steps as one client, each as large as all clients' together: it lies as many "
    "steps from the start as the federated model, with as many samples."
)


class Asked(Record):
    """What is compared, and where it lives."""

    folder: str
    session: Session
    """Of the federation; its seed is replaced, paths are absolute."""
    larger_batches: bool

    def of_seed(self, seed: int) -> Path:
        """Where all models of one training seed lie."""
        return Path(self.folder) / f"seed-{seed}"


def begin(asked: Asked) -> None:
    """Write down what is asked for; a folder that was begun with something else is left alone.

    Raises:
        SettingsError: the folder holds another comparison.
    """
    path = Path(asked.folder) / "asked.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    text = asked.model_dump_json(indent=2, exclude={"folder"})
    if path.is_file() and path.read_text(encoding="utf-8") != text:
        raise SettingsError(f"{asked.folder}: holds a comparison with other settings; choose another folder")
    write_whole(path, text)


@task(task_run_name="federation, seed {seed}", cache_policy=NO_CACHE)
def federate(seed: int, asked: Asked) -> str:
    """The session itself, as a user runs it; one that was interrupted goes on, one that is finished is only read.

    Raises:
        FederationError: it fails.
    """
    here = asked.of_seed(seed)
    output_dir = here / "federated"
    if (found := begun_in(output_dir)) is not None and _is_finished(found, asked.session.rounds):
        return str(found.path)
    session = asked.session.model_copy(update={"seed": seed, "output_dir": str(output_dir)})
    tell(Event(kind="stage", text=f"seed {seed}: federated training"))
    say(f"seed {seed}: federated training in {here}")
    run_zk0(session_command(session, here / "session.toml"), f"the session with seed {seed}", FederationError)
    if (made := begun_in(output_dir)) is None:
        raise FederationError(f"{here}: the session left no folder; see what it printed")
    return str(made.path)


@task(task_run_name="{name}, seed {seed}", cache_policy=NO_CACHE)
def train_baseline(name: str, seed: int, asked: Asked, source: str) -> None:
    """One client alone, or all data in one place: trained, judged and tried as the federation was."""
    from zk0.training.baselines import Baseline

    tell(Event(kind="stage", text=f"seed {seed}: {name}"))
    client = None if name == CENTRALISED else name
    folder = _baseline_folder(asked.of_seed(seed), client)
    history = Baseline(SessionFolder(Path(source)), folder, client, asked.larger_batches).carry_out()
    last = history[-1].evaluation
    say(f"seed {seed}: {name}: policy loss on unseen data {last.policy_loss:.4f}" if last else f"seed {seed}: {name}")


@task(task_run_name="results of {seeds} seeds", cache_policy=NO_CACHE)
def show(seeds: tuple[int, ...], asked: Asked) -> str:
    """What the models come to, as a table in the UI, as results.json and as a page; the page's path.

    Raises:
        EvaluationError: they were not judged on the same.
    """
    from zk0.report.contrast_page import contrast_table, measured_how, write_contrast_page

    here = Path(asked.folder)
    models = [model for seed in seeds for model in _models(seed, asked)]
    tasks = [m.dataset.removeprefix("sim:") for m in asked.session.members()]
    rows = contrasts(models, shared={name for name in tasks if tasks.count(name) > 1})
    batches = LARGER_BATCHES if asked.larger_batches else SAME_BATCHES
    found = {
        "how": measured_how(asked.session, models, batches),
        "seeds": seeds,
        "contrasts": [{**r.model_dump(), "percent": r.percent} for r in rows],
        "models": [a.model_dump() for a in averages(models)],
        "work": [{"model": m.name, "seed": m.seed, **m.work.model_dump()} for m in models],
    }
    write_whole(here / "results.json", json.dumps(found, indent=2))
    page = here / "report.html"
    write_contrast_page(page, asked.session, models, rows, batches)
    heads, lines = contrast_table(rows).plain()
    table = [dict(zip(heads, line, strict=True)) for line in lines]
    create_table_artifact(table=table, key="federated-vs-centralised", description=f"{page}; {found['how'][0]}")
    return str(page)


def _models(seed: int, asked: Asked) -> list[Contestant]:
    """All models of one seed."""
    here, batch_size = asked.of_seed(seed), asked.session.training.batch_size
    source = begun_in(here / "federated")
    assert source is not None, "show comes after federate"
    history = Ledger(source.ledger).read()
    federation, nothing = work_of(history, batch_size), work_of([], batch_size)
    base, last = read_measured(source.path, 0), read_measured(source.path, history[-1].round)
    alone = [
        Contestant(
            kind="alone",
            client=c.name,
            seed=seed,
            work=work_of(history, batch_size, c.name),
            measured=read_measured(_baseline_folder(here, c.name)),
        )
        for c in asked.session.members()
    ]
    folder = _baseline_folder(here, None)
    steps = sum(u.metrics.local_steps for r in Ledger(folder / "ledger.jsonl").read() for u in r.updates)
    return [
        Contestant(kind="base", seed=seed, work=nothing, measured=base),
        *alone,
        Contestant(kind="federated", seed=seed, work=federation, measured=last),
        Contestant(
            kind=CENTRALISED,
            seed=seed,
            work=federation.model_copy(update={"steps": steps}),
            measured=read_measured(folder),
        ),
    ]


def _baseline_folder(here: Path, client: str | None) -> Path:
    return here / CENTRALISED if client is None else here / "alone" / client


def _is_finished(source: SessionFolder, rounds: int) -> bool:
    history = Ledger(source.ledger).read()
    return bool(history) and history[-1].round == rounds and source.report.is_file()

"""The page of a comparison of federated training with its baselines."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from zk0.contrast import Average, Contestant, Contrast, averages
from zk0.report.contrast_chart import contrast_figure
from zk0.report.figures import DASH, count, fixed, percent
from zk0.report.inline import inlined
from zk0.report.palette import DARK, LIGHT, css_variables
from zk0.report.tables import Cell, Column, Table, decimal, whole, words
from zk0.report.template import render
from zk0.report.write import write_bytes
from zk0.session import Session

PLACES = {"policy_loss": 4, "action_error": 2, "success_rate": 2}
TITLES = {"policy_loss": "policy loss", "action_error": "action error", "success_rate": "success rate"}
BASELINES = {"base": "the start", "alone": "clients alone", "centralised": "centralised"}
ON = {
    "held out": "what clients hold out",
    "own": "own episodes or task",
    "others": "those of other clients",
    "unseen": "what nobody has",
}


def write_contrast_page(
    path: Path, session: Session, models: Sequence[Contestant], rows: Sequence[Contrast], batches: str
) -> None:
    """Write the page: one file that asks for no other; `batches` says how the centralised model was trained.

    Raises:
        ReportError: it cannot be written.
    """
    found = averages(models)
    how = measured_how(session, models, batches)
    page = render(
        "contrast.html.j2",
        name=session.name,
        subtitle=f"SmolVLA ({session.policy.path}), {count(session.rounds)} rounds, training seeds {seeds_of(models)}",
        sentences=_sentences(rows),
        chart=inlined(partial(contrast_figure, rows, how[0]), "Differences with intervals; the table has the numbers."),
        tables={
            "contrasts": contrast_table(rows),
            "losses": model_table(found, "policy_loss"),
            "errors": model_table(found, "action_error"),
            "rates": model_table(found, "success_rate"),
            "work": work_table(models),
        },
        how=how,
        light=css_variables(LIGHT),
        dark=css_variables(DARK),
    )
    write_bytes(path, page.encode())


def _sentences(rows: Sequence[Contrast]) -> list[str]:
    """Loss and success in words; of what never differed, one sentence for all."""
    told = [sentence(row) for row in rows if row.metric != "action_error" and row.interval is not None]
    if any(row.metric == "success_rate" for row in rows) and not any("Success" in one for one in told):
        told.append("In closed loop nothing differed: the same attempts succeeded, or none.")
    return told or ["Nothing was measured that has an interval."]


def sentence(row: Contrast) -> str:
    """One difference in words, as sure as its interval is.

    >>> sentence(Contrast(metric="policy_loss", against="centralised", where="unseen", seeds=2, units=6,
    ...     baseline=0.5, federated=0.6, change=0.1, interval=(-0.1, 0.3)))
    'Policy loss on what nobody has: federated 0.6000, centralised 0.5000 (+20 %); not told apart (−0.1000 to 0.3000).'
    """
    places = PLACES[row.metric]
    relative = f" ({row.percent:+.0f} %)".replace("-", "−") if row.percent is not None else ""
    head = (
        f"{TITLES[row.metric].capitalize()} on {ON[row.where]}: federated {fixed(row.federated, places)}, "
        f"{BASELINES[row.against]} {fixed(row.baseline, places)}{relative}"
    )
    if row.interval is None:
        return f"{head}; no interval."
    told = "told apart" if row.interval[0] > 0 or row.interval[1] < 0 else "not told apart"
    low, high = (fixed(end, places) for end in row.interval)
    return f"{head}; {told} ({low} to {high})."


def measured_how(session: Session, models: Sequence[Contestant], batches: str) -> tuple[str, ...]:
    """Normalisation and seeds first, then what the intervals mean and what was equal."""
    return (
        f"Normalisation {session.normalization}: one set of statistics for all models of a seed. Training seeds "
        f"{seeds_of(models)}; the judges draw noise from the same seed, {session.evaluation.times} times per frame.",
        "Intervals are 95 %, paired: under each training seed the federated model and the baseline judge the same "
        "episodes with the same noise and make the same attempts. Training seeds and episodes (or attempts) both count "
        "as drawn at random (two-way crossed layout, Student's t, Satterthwaite's degrees of freedom); with one seed "
        "only episodes do, and nothing is said of other seeds. Every episode counts the same. Where several clients "
        "trained alone, the baseline is the mean of those that are asked about an episode.",
        "All models of a seed begin with the same weights and take the federation's learning rates, with a fresh "
        "optimizer in every round. A client alone makes the very steps that it made for the federation. " + batches,
    )


def seeds_of(models: Sequence[Contestant]) -> str:
    """The training seeds, by commas."""
    return ", ".join(dict.fromkeys(str(m.seed) for m in models))


def contrast_table(rows: Sequence[Contrast]) -> Table:
    """Every difference with its interval."""
    columns = (
        Column(title="metric", kind="text"),
        Column(title="against", kind="text"),
        Column(title="on", kind="text"),
        Column(title="seeds"),
        Column(title="units", unit="episodes or attempts"),
        Column(title="baseline"),
        Column(title="federated"),
        Column(title="change", unit="95 % interval"),
        Column(title="of the baseline", unit="%"),
    )
    return Table(caption="Federated against its baselines", columns=columns, rows=tuple(map(_contrast_row, rows)))


def model_table(found: Sequence[Average], metric: str) -> Table:
    """One line a model, one column a data set or task, means over training seeds."""
    mine = [a for a in found if a.metric == metric]
    whats, models = (list(dict.fromkeys(getattr(a, name) for a in mine)) for name in ("what", "model"))
    cells = {(a.model, a.what): a for a in mine}
    columns = (Column(title="model", kind="text"), *(Column(title=what) for what in whats))
    rows = tuple((words(model), *(_average(cells.get((model, what))) for what in whats)) for model in models)
    return Table(caption=f"{TITLES[metric]} of every model", columns=columns, rows=rows)


def work_table(models: Sequence[Contestant]) -> Table:
    """Steps, samples and frames a step of every model of every seed."""
    heads = ("seed", "optimizer steps", "samples", "samples a step")
    columns = (Column(title="model", kind="text"), *(Column(title=head) for head in heads))
    rows = tuple(
        (words(m.name), whole(m.seed), whole(m.work.steps), whole(m.work.samples), _batch(m))
        for m in models
        if m.kind != "base"
    )
    return Table(caption="Work of every model", columns=columns, rows=rows)


def _batch(model: Contestant) -> Cell:
    return decimal(model.work.samples / model.work.steps if model.work.steps else None, 1)


def _contrast_row(row: Contrast) -> tuple[Cell, ...]:
    places = PLACES[row.metric]
    change = fixed(row.change, places)
    if row.interval is not None:
        change += f" ({fixed(row.interval[0], places)} to {fixed(row.interval[1], places)})"
    return (
        words(TITLES[row.metric]),
        words(BASELINES[row.against]),
        words(ON[row.where]),
        whole(row.seeds),
        whole(row.units),
        decimal(row.baseline, places),
        decimal(row.federated, places),
        Cell(text=change, key=row.change),
        decimal(row.percent, 0),
    )


def _average(found: Average | None) -> Cell:
    if found is None:
        return Cell(text=DASH)
    if found.attempts is None or found.interval is None:
        return decimal(found.value, PLACES[found.metric])
    low, high = (percent(end) for end in found.interval)
    return Cell(text=f"{found.successes} of {found.attempts} ({low} to {high})", key=found.value)

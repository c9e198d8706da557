"""Tables of the benchmark against baselines: differences, averages of each model, training budgets."""

from collections.abc import Sequence

from zk0.report.number_format import DASH, percent
from zk0.report.tables.table import Cell, Column, Table, decimal_cell, integer_cell, interval_cell, text_cell
from zk0.stats.baseline_comparison import BaselineDifference, BenchmarkModel, ModelAverage

METRIC_DECIMALS = {"policy_loss": 4, "action_error": 2, "success_rate": 2}
METRIC_TITLES = {"policy_loss": "policy loss", "action_error": "action error", "success_rate": "success rate"}
BASELINE_TITLES = {"base": "base policy", "local-only": "local-only", "centralized": "centralized"}
EVALUATED_ON_TITLES = {
    "held out": "held-out episodes or tasks of all clients",
    "own": "the client's own held-out episodes or tasks",
    "others": "held-out episodes or tasks of other clients",
    "unseen": "unseen data",
}


def baseline_difference_table(differences: Sequence[BaselineDifference]) -> Table:
    """Every difference with its interval."""
    columns = (
        Column(title="metric", kind="text"),
        Column(title="baseline", kind="text"),
        Column(title="evaluated on", kind="text"),
        Column(title="seeds"),
        Column(title="units", unit="episodes or attempts"),
        Column(title="baseline value"),
        Column(title="federated value"),
        Column(title="change", unit="95 % interval"),
        Column(title="relative change", unit="%"),
    )
    rows = tuple(_difference_row(difference) for difference in differences)
    return Table(caption="Federated model against baselines", columns=columns, rows=rows)


def model_average_table(averages: Sequence[ModelAverage], metric: str) -> Table:
    """One row per model, one column per dataset or task; means over the training seeds."""
    of_metric = [a for a in averages if a.metric == metric]
    subjects, models = (list(dict.fromkeys(getattr(a, name) for a in of_metric)) for name in ("subject", "model"))
    cells = {(a.model, a.subject): a for a in of_metric}
    columns = (Column(title="model", kind="text"), *(Column(title=subject) for subject in subjects))
    rows = tuple(
        (text_cell(model), *(_average_cell(cells.get((model, subject))) for subject in subjects)) for model in models
    )
    return Table(caption=f"{METRIC_TITLES[metric].capitalize()} of every model", columns=columns, rows=rows)


def training_budget_table(models: Sequence[BenchmarkModel]) -> Table:
    """Optimizer steps, samples and samples per step of every model and seed; the base policy is left out."""
    titles = ("seed", "optimizer steps", "samples", "samples per step")
    columns = (Column(title="model", kind="text"), *(Column(title=title) for title in titles))
    rows = tuple(_budget_row(m) for m in models if m.kind != "base")
    return Table(caption="Training budget of every model", columns=columns, rows=rows)


def _budget_row(model: BenchmarkModel) -> tuple[Cell, ...]:
    budget = model.budget
    per_step = budget.samples / budget.optimizer_steps if budget.optimizer_steps else None
    return (
        text_cell(model.name),
        integer_cell(model.seed),
        integer_cell(budget.optimizer_steps),
        integer_cell(budget.samples),
        decimal_cell(per_step, 1),
    )


def _difference_row(row: BaselineDifference) -> tuple[Cell, ...]:
    places = METRIC_DECIMALS[row.metric]
    return (
        text_cell(METRIC_TITLES[row.metric]),
        text_cell(BASELINE_TITLES[row.baseline]),
        text_cell(EVALUATED_ON_TITLES[row.evaluated_on]),
        integer_cell(row.seeds),
        integer_cell(row.units),
        decimal_cell(row.baseline_value, places),
        decimal_cell(row.federated_value, places),
        interval_cell(row.change, row.interval, places),
        decimal_cell(row.percent, 0),
    )


def _average_cell(average: ModelAverage | None) -> Cell:
    if average is None:
        return Cell(text=DASH)
    if average.attempts is None or average.interval is None:
        return decimal_cell(average.value, METRIC_DECIMALS[average.metric])
    low, high = (percent(end) for end in average.interval)
    text = f"{average.successes} of {average.attempts} ({low} to {high})"
    return Cell(text=text, key=average.value)

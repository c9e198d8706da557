"""HTML page of the benchmark of a federated model against its baselines."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from zk0.errors import ReportError
from zk0.report.charts.baseline_chart import baseline_difference_figure
from zk0.report.charts.inline import inline_chart
from zk0.report.number_format import count, fixed
from zk0.report.page.template import render_template
from zk0.report.palette import DARK_THEME, LIGHT_THEME, css_variables
from zk0.report.tables.benchmark_tables import (
    BASELINE_TITLES,
    EVALUATED_ON_TITLES,
    METRIC_DECIMALS,
    METRIC_TITLES,
    baseline_difference_table,
    model_average_table,
    training_budget_table,
)
from zk0.settings.session import Session
from zk0.stats.baseline_comparison import BaselineDifference, BenchmarkModel, model_averages
from zk0.storage.atomic import atomic_write_bytes


def write_benchmark_page(
    path: Path,
    session: Session,
    models: Sequence[BenchmarkModel],
    differences: Sequence[BaselineDifference],
    batches: str,
) -> None:
    """Write the page, one file that loads no other.

    Args:
        path: of the page.
        session: of the federation.
        models: of all training seeds.
        differences: between the federated model and its baselines.
        batches: sentence about the steps and batches of centralized training.

    Raises:
        ReportError: the page cannot be written.
    """
    averages = model_averages(models)
    notes = method_notes(session, models, batches)
    seeds = training_seeds(models)
    page = render_template(
        "benchmark_page.html.j2",
        name=session.name,
        subtitle=f"policy {session.policy.path}, {count(session.rounds)} rounds, training seeds {seeds}",
        sentences=_sentences(differences),
        chart=inline_chart(
            partial(baseline_difference_figure, differences, notes[0]),
            "Differences with their 95 % intervals; the table has the numbers.",
        ),
        tables={
            "differences": baseline_difference_table(differences),
            "losses": model_average_table(averages, "policy_loss"),
            "errors": model_average_table(averages, "action_error"),
            "rates": model_average_table(averages, "success_rate"),
            "budgets": training_budget_table(models),
        },
        method_notes=notes,
        light=css_variables(LIGHT_THEME),
        dark=css_variables(DARK_THEME),
    )
    atomic_write_bytes(path, page.encode(), durable=False, error=ReportError)


def _sentences(differences: Sequence[BaselineDifference]) -> list[str]:
    """Sentences about loss and success rate; a single one about success rates if no attempt differs."""
    shown = [d for d in differences if d.metric != "action_error" and d.interval is not None]
    sentences = [difference_sentence(d) for d in shown]
    has_rates = any(d.metric == "success_rate" for d in differences)
    if has_rates and not any(d.metric == "success_rate" for d in shown):
        sentences.append("In closed loop, every attempt had the same result for all models.")
    return sentences or ["No difference has an interval."]


def difference_sentence(row: BaselineDifference) -> str:
    """One difference in a sentence, and whether it is significant at 95 % (its interval excludes zero).

    >>> sentence = difference_sentence(BaselineDifference(metric="policy_loss", baseline="base", evaluated_on="unseen",
    ...     seeds=2, units=6, baseline_value=0.5, federated_value=0.6, change=0.1, interval=(-0.1, 0.3)))
    >>> for part in sentence.split("; "): print(part)
    Policy loss on unseen data: federated 0.6000, base policy 0.5000 (+20 %)
    not significant (95 % interval −0.1000 to 0.3000).
    """
    places = METRIC_DECIMALS[row.metric]
    relative = f" ({row.percent:+.0f} %)".replace("-", "−") if row.percent is not None else ""
    text = (
        f"{METRIC_TITLES[row.metric].capitalize()} on {EVALUATED_ON_TITLES[row.evaluated_on]}: federated "
        f"{fixed(row.federated_value, places)}, {BASELINE_TITLES[row.baseline]} {fixed(row.baseline_value, places)}"
        f"{relative}"
    )
    if row.interval is None:
        return f"{text}; no interval."
    significance = "significant" if row.interval[0] > 0 or row.interval[1] < 0 else "not significant"
    low, high = (fixed(end, places) for end in row.interval)
    return f"{text}; {significance} (95 % interval {low} to {high})."


def method_notes(session: Session, models: Sequence[BenchmarkModel], batches: str) -> tuple[str, ...]:
    """Notes on the method: normalization and seeds, intervals, and what all models have in common."""
    kinds = {m.results.unseen.normalization for m in models if m.results.unseen}
    return (
        f"Normalization {', '.join(sorted(kinds)) or session.normalization}: one set of statistics for all models of a "
        "seed. Training seeds "
        f"{training_seeds(models)}; evaluation noise is drawn with the same seed for all models, "
        f"{session.evaluation.times} times per frame.",
        "Intervals are 95 %, paired: under each training seed, the federated model and the baseline are evaluated on "
        "the same episodes with the same noise, and make the same attempts. Training seeds and episodes (or attempts) "
        "are both random effects (two-way crossed layout, Student's t with Satterthwaite's degrees of freedom); with "
        "one seed, only episodes are, and the interval does not cover other seeds. All episodes have the same weight. "
        "If several local-only models are compared on an episode, the baseline is their mean.",
        "All models of a seed start from the same weights and use the learning rates of the federation, with a fresh "
        "optimizer in every round. Local-only training of a client makes the same steps as its training in the "
        "federation. " + batches,
    )


def training_seeds(models: Sequence[BenchmarkModel]) -> str:
    """The training seeds, separated by commas."""
    return ", ".join(dict.fromkeys(str(m.seed) for m in models))

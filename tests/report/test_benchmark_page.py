"""The page of the benchmark against baselines: numbers, significance, and notes on the method."""

import re
from pathlib import Path

import pytest

from zk0.report.charts.baseline_chart import baseline_difference_figure
from zk0.report.page.benchmark_page import difference_sentence, write_benchmark_page
from zk0.report.tables.benchmark_tables import (
    baseline_difference_table,
    model_average_table,
    training_budget_table,
)
from zk0.settings.loading import parse_session
from zk0.settings.session import Session
from zk0.stats.baseline_comparison import BaselineDifference, BenchmarkModel, ModelAverage, TrainingBudget


def difference(
    metric: str,
    compared: tuple[str, str],
    values: tuple[float, float],
    change: float,
    interval: tuple[float, float] | None,
) -> BaselineDifference:
    """`compared` is the baseline and what it is evaluated on; `values` are those of baseline and federated model."""
    return BaselineDifference(
        metric=metric, baseline=compared[0], evaluated_on=compared[1], baseline_value=values[0],
        federated_value=values[1], change=change, interval=interval, seeds=2, units=6,
    )  # fmt: skip


ROWS = (
    difference("policy_loss", ("base", "held out"), (0.4, 0.1), -0.3, (-0.35, -0.25)),
    difference("policy_loss", ("centralized", "held out"), (0.08, 0.1), 0.02, (0.01, 0.03)),
    difference("action_error", ("local-only", "own"), (5.0, 4.0), -1.0, (-3.0, 1.0)),
    difference("success_rate", ("local-only", "others"), (0.0, 0.5), 0.5, None),
)


@pytest.fixture
def session() -> Session:
    clients = [{"name": n, "dataset": f"sim:lift-{n}"} for n in ("red", "white")]
    values = {
        "name": "mine",
        "policy": {"path": "a <b>"},
        "clients": clients,
        "normalization": "pooled",
        "evaluation": {"datasets": [{"dataset": "sim:lift-green"}]},
    }
    return parse_session(values, "test")


def benchmark_model(kind: str, seed: int, steps: int, samples: int) -> BenchmarkModel:
    results = {"label": kind, "round": 1, "unseen": None, "held_out": None, "rollouts": (), "statistics": None}
    return BenchmarkModel(
        kind=kind, seed=seed, budget=TrainingBudget(optimizer_steps=steps, samples=samples), results=results
    )


def test_the_page_has_normalization_seeds_and_batches(session: Session, tmp_path: Path) -> None:
    models = [benchmark_model(k, s, 40, 1280) for s in (7, 8) for k in ("base", "federated", "centralized")]
    write_benchmark_page(tmp_path / "report.html", session, models, ROWS, "Batches of all.")
    text = (tmp_path / "report.html").read_text()
    assert "a &lt;b&gt;" in text
    assert "<b>" not in text.replace("a &lt;b&gt;", "")
    assert "Normalization pooled" in text
    assert "Training seeds 7, 8" in text
    assert "8 times per frame" in text
    assert "Batches of all." in text
    assert text.count("data-sortable") >= 3
    assert not re.findall(r"(?:src|href)=\"(?!data:|#)", text), "loads no other file"


def test_a_difference_in_a_sentence() -> None:
    assert "(−75 %); significant (95 % interval −0.3500 to −0.2500)." in difference_sentence(ROWS[0])
    assert difference_sentence(ROWS[3]) == (
        "Success rate on held-out episodes or tasks of other clients: federated 0.50, local-only 0.00; no interval."
    )


def test_tables() -> None:
    cells = [[c.text for c in row] for row in baseline_difference_table(ROWS).rows]
    assert cells[1][5:] == ["0.0800", "0.1000", "0.0200 (0.0100 to 0.0300)", "25"]
    assert cells[3][7:] == ["0.50", "–"]
    averages = [
        ModelAverage(model="base", metric="success_rate", subject="lift", seeds=1, value=0.2, interval=(0.04, 0.62),
                successes=1, attempts=5),
        ModelAverage(model="base", metric="policy_loss", subject="x", seeds=1, value=0.25),
        ModelAverage(model="all", metric="policy_loss", subject="y", seeds=1, value=0.5),
    ]  # fmt: skip
    assert [c.text for c in model_average_table(averages, "success_rate").rows[0]] == ["base", "1 of 5 (4 % to 62 %)"]
    assert [[c.text for c in row] for row in model_average_table(averages, "policy_loss").rows] == [
        ["base", "0.2500", "–"],
        ["all", "–", "0.5000"],
    ]
    (row,) = training_budget_table([benchmark_model("federated", 1, 3, 100), benchmark_model("base", 1, 0, 0)]).rows
    assert [c.text for c in row] == ["federated", "1", "3", "100", "33.3"]


def test_the_chart_colors_significant_differences_and_has_a_footnote() -> None:
    figure = baseline_difference_figure(ROWS, "Normalization pooled, seeds 1, 2.")
    losses, rates = figure.axes
    assert [t.get_text() for t in losses.get_yticklabels()] == ["base · held out", "centralized · held out"]
    points = [drawn for drawn in losses.get_lines() if drawn.get_marker() == "o"]
    assert [p.get_xdata()[0] for p in points] == [-0.3, 0.02]
    from zk0.report.palette import LIGHT_THEME

    assert [p.get_color() for p in points] == [LIGHT_THEME.good, LIGHT_THEME.bad]
    assert [d.get_xdata()[0] for d in rates.get_lines() if d.get_marker() == "o"] == [50.0]
    assert "Normalization pooled" in figure._supxlabel.get_text()
    assert baseline_difference_figure((), "x").axes[0].texts[0].get_text() == "nothing measured"

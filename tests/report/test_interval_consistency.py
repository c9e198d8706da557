"""Charts, tables, model card, metric files, W&B and terminal have the same 95 % interval of the same evaluation."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from matplotlib.collections import PolyCollection
from scipy.stats import t

from flows.cli.terminal import print_session_result
from zk0.audit.ledger import Ledger
from zk0.publish.round_values import round_values
from zk0.records import Member, RoundRecord
from zk0.report.charts.session_charts import action_error_by_round_figure, policy_loss_figure
from zk0.report.key_results import key_results
from zk0.report.metrics import action_error_history, policy_loss_history
from zk0.report.model_card import model_card
from zk0.report.tables.round_tables import round_table
from zk0.settings.session import Session
from zk0.stats.intervals import EpisodeMetric
from zk0.storage.session_folder import SessionFolder

ROUND = 3
Ends = tuple[float, float]
DOF = 4 * (1.2**2 + 1.5**2) ** 2 / (1.2**4 + 1.5**4)
"""Welch and Satterthwaite, two sets of five episodes with standard errors in this proportion."""
EXPECTED: dict[EpisodeMetric, Ends] = {
    "policy_loss": t.interval(0.95, DOF, loc=0.655, scale=0.021 * (1.2**2 + 1.5**2) ** 0.5 / 2),
    "action_error_degrees": t.interval(0.95, 8, loc=9.15, scale=0.1 * 0.5**0.5 / 2**0.5),
}


@pytest.fixture(params=list(EXPECTED))
def metric(request: pytest.FixtureRequest) -> EpisodeMetric:
    return request.param


def ends_of_text(text: str) -> Ends:
    """Ends of the interval that a text such as `0.655 ± 0.047` stands for."""
    value, half_width = (float(part) for part in re.findall(r"\d+\.\d+", text)[:2])
    return value - half_width, value + half_width


def close(ends: Ends, metric: EpisodeMetric, decimals: int) -> bool:
    """Whether both ends are the expected ones, after value and half width were rounded."""
    return all(abs(a - b) <= 10**-decimals for a, b in zip(ends, EXPECTED[metric], strict=True))


def test_metric_files_and_wandb(history: list[RoundRecord], metric: EpisodeMetric) -> None:
    entries = policy_loss_history(history) if metric == "policy_loss" else action_error_history(history)
    assert (entries[ROUND].lower, entries[ROUND].upper) == pytest.approx(EXPECTED[metric])
    values = round_values(history[ROUND])
    assert (values[f"server_{metric}_lower"], values[f"server_{metric}_upper"]) == pytest.approx(EXPECTED[metric])


def test_chart(history: list[RoundRecord], metric: EpisodeMetric) -> None:
    figures: dict[EpisodeMetric, Callable[[], Any]] = {
        "policy_loss": lambda: policy_loss_figure(history),
        "action_error_degrees": lambda: action_error_by_round_figure(history, "degrees"),
    }
    (axes,) = figures[metric]().axes
    (band,) = [c for c in axes.collections if isinstance(c, PolyCollection)]
    of_round = [y for path in band.get_paths() for x, y in path.vertices if x == ROUND]
    assert (min(of_round), max(of_round)) == pytest.approx(EXPECTED[metric])


def test_table_and_key_results(
    session: Session, members: list[Member], history: list[RoundRecord], metric: EpisodeMetric
) -> None:
    loss, error = round_table(session, history).rows[ROUND][1:3]
    is_loss = metric == "policy_loss"
    assert close(ends_of_text(loss.text if is_loss else error.text), metric, 3 if is_loss else 2)
    results = {r.title: r.text for r in key_results(session, members, history, [])}
    text = results["Policy loss, unseen data" if is_loss else "Action error, unseen data"]
    assert close(ends_of_text(text), metric, 3 if is_loss else 1)


def test_model_card(session: Session, members: list[Member], history: list[RoundRecord], metric: EpisodeMetric) -> None:
    card = model_card(session, members, history)
    (line,) = [line for line in card.splitlines() if line.startswith("| mean over sets")]
    loss, error = line.split("|")[4:6]
    is_loss = metric == "policy_loss"
    assert close(ends_of_text(loss if is_loss else error), metric, 3 if is_loss else 2)


def test_terminal(
    session: Session,
    history: list[RoundRecord],
    metric: EpisodeMetric,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    SessionFolder(tmp_path).create(session)
    for record in history:
        Ledger(tmp_path / "ledger.jsonl").append(record)
    print_session_result(tmp_path)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "0.655" in line]
    loss, error = re.findall(r"\d+\.\d+ ± \d+\.\d+", line)
    is_loss = metric == "policy_loss"
    assert close(ends_of_text(loss if is_loss else error), metric, 3 if is_loss else 2)

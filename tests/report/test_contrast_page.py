"""The page about a federation and its baselines: numbers as they are, sure or not, and how they were measured."""

import re
from pathlib import Path

import pytest

from zk0.contrast import Average, Contestant, Contrast, Work
from zk0.report.contrast_chart import contrast_figure
from zk0.report.contrast_page import contrast_table, model_table, sentence, work_table, write_contrast_page
from zk0.session import Session, parse_session

COMMON = {"seeds": 2, "units": 6}
ROWS = (
    Contrast(metric="policy_loss", against="base", where="held out", baseline=0.4, federated=0.1, change=-0.3,
             interval=(-0.35, -0.25), **COMMON),
    Contrast(metric="policy_loss", against="centralised", where="held out", baseline=0.08, federated=0.1, change=0.02,
             interval=(0.01, 0.03), **COMMON),
    Contrast(metric="action_error", against="alone", where="own", baseline=5.0, federated=4.0, change=-1.0,
             interval=(-3.0, 1.0), **COMMON),
    Contrast(metric="success_rate", against="alone", where="others", baseline=0.0, federated=0.5, change=0.5,
             interval=None, **COMMON),
)  # fmt: skip


@pytest.fixture
def session() -> Session:
    clients = [{"name": n, "dataset": f"sim:lift-{n}"} for n in ("red", "white")]
    values = {
        "name": "mine",
        "policy": {"path": "a <b>"},
        "clients": clients,
        "evaluation": {"datasets": [{"dataset": "sim:lift-green"}]},
    }
    return parse_session(values, "test")


def contestant(kind: str, seed: int, steps: int, samples: int) -> Contestant:
    measured = {"label": kind, "round": 1, "unseen": None, "held_out": None, "rollouts": (), "statistics": None}
    return Contestant(kind=kind, seed=seed, work=Work(steps=steps, samples=samples), measured=measured)


def test_the_page_says_what_and_how(session: Session, tmp_path: Path) -> None:
    models = [contestant(k, s, 40, 1280) for s in (7, 8) for k in ("base", "federated", "centralised")]
    write_contrast_page(tmp_path / "report.html", session, models, ROWS, "Batches of all.")
    text = (tmp_path / "report.html").read_text()
    assert "a &lt;b&gt;" in text
    assert "<b>" not in text.replace("a &lt;b&gt;", "")
    assert "Normalisation pooled" in text
    assert "Training seeds 7, 8" in text
    assert "8 times per frame" in text
    assert "Batches of all." in text
    assert text.count("data-sortable") >= 3
    assert not re.findall(r"(?:src|href)=\"(?!data:|#)", text), "asks for no other file"


def test_a_difference_in_words() -> None:
    assert "(−75 %); told apart (−0.3500 to −0.2500)." in sentence(ROWS[0])
    assert sentence(ROWS[3]) == (
        "Success rate on those of other clients: federated 0.50, clients alone 0.00; no interval."
    )


def test_tables() -> None:
    cells = [[c.text for c in row] for row in contrast_table(ROWS).rows]
    assert cells[1][5:] == ["0.0800", "0.1000", "0.0200 (0.0100 to 0.0300)", "25"]
    assert cells[3][7:] == ["0.50", "–"]
    averages = [
        Average(model="base", metric="success_rate", what="lift", seeds=1, value=0.2, interval=(0.04, 0.62),
                successes=1, attempts=5),
        Average(model="base", metric="policy_loss", what="x", seeds=1, value=0.25),
        Average(model="all", metric="policy_loss", what="y", seeds=1, value=0.5),
    ]  # fmt: skip
    assert [c.text for c in model_table(averages, "success_rate").rows[0]] == ["base", "1 of 5 (4 % to 62 %)"]
    assert [[c.text for c in row] for row in model_table(averages, "policy_loss").rows] == [
        ["base", "0.2500", "–"],
        ["all", "–", "0.5000"],
    ]
    (row,) = work_table([contestant("federated", 1, 3, 100), contestant("base", 1, 0, 0)]).rows
    assert [c.text for c in row] == ["federated", "1", "3", "100", "33.3"]


def test_the_chart_tells_better_from_worse_and_says_how() -> None:
    figure = contrast_figure(ROWS, "Normalisation pooled, seeds 1, 2.")
    losses, rates = figure.axes
    assert [t.get_text() for t in losses.get_yticklabels()] == ["base · held out", "centralised · held out"]
    points = [drawn for drawn in losses.get_lines() if drawn.get_marker() == "o"]
    assert [p.get_xdata()[0] for p in points] == [-0.3, 0.02]
    from zk0.report.palette import LIGHT

    assert [p.get_color() for p in points] == [LIGHT.good, LIGHT.bad]
    assert [d.get_xdata()[0] for d in rates.get_lines() if d.get_marker() == "o"] == [50.0]
    assert "Normalisation pooled" in figure._supxlabel.get_text()
    assert contrast_figure((), "x").axes[0].texts[0].get_text() == "nothing measured"

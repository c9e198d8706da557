"""Comparison of settings: means, paired differences and the files, recomputed from the values."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from flows.cli.versus_command import parse_varied
from zk0.errors import EvaluationError, SettingsError
from zk0.records import EpisodeScore, Evaluation, Rollout, SetScore
from zk0.stats.model_comparison import ModelResults
from zk0.stats.variant_comparison import VariantRun, variant_summaries, variants_of

LOSSES = {"fedavg": [[0.50, 0.60, 0.70], [0.52, 0.66, 0.71]], "scaffold": [[0.45, 0.58, 0.61], [0.50, 0.57, 0.66]]}
SUCCESSES = {"fedavg": [[0, 1], [0, 0]], "scaffold": [[1, 1], [0, 1]]}


def run(variant: str, number: int, statistics: str = "s", episodes: int = 3) -> VariantRun:
    scores = tuple(
        EpisodeScore(episode=e, frames=5, actions=50, policy_loss=LOSSES[variant][number][e], action_error_degrees=2.0)
        for e in range(episodes)
    )
    unseen = SetScore(
        dataset="lab/unseen", frames=15, policy_loss=0.5, policy_loss_se=None, action_error_degrees=2.0,
        joint_error_degrees=(2.0,), horizon_error_degrees=(2.0,), episodes=scores,
    )  # fmt: skip
    rollouts = tuple(
        Rollout(
            round=2, checkpoint="c", conditions_digest="c", task="lift", client="a", seed=seed, success=bool(success),
            steps=3, duration_seconds=0.3, fps=10.0, smoothness=None,
        )
        for seed, success in enumerate(SUCCESSES[variant][number])
    )  # fmt: skip
    evaluation = Evaluation(
        round=2, policy_loss=0.5, policy_loss_se=None, action_error_degrees=2.0, sets=(unseen,), normalization="pooled",
        seed=number, times=8, seconds=1.0,
    )  # fmt: skip
    results = ModelResults(
        label="x", round=2, unseen=evaluation, held_out=None, rollouts=rollouts, statistics=statistics
    )
    return VariantRun(variant=variant, seed=number, results=results)


RUNS = [run(variant, number) for number in (0, 1) for variant in ("fedavg", "scaffold")]


def test_means_and_paired_differences() -> None:
    rows = {(r.variant, r.metric): r for r in variant_summaries(RUNS)}
    first, other = rows["fedavg", "policy_loss"], rows["scaffold", "policy_loss"]
    assert (first.evaluated_on, first.seeds, first.units, first.change) == ("unseen", 2, 3, None)
    assert first.mean == pytest.approx(np.mean(LOSSES["fedavg"]))
    d = np.array(LOSSES["scaffold"]) - np.array(LOSSES["fedavg"])
    assert other.change == pytest.approx(d.mean())
    seeds, episodes = d.mean(1) - d.mean(), d.mean(0) - d.mean()
    rest = ((d - seeds[:, None] - episodes[None] - d.mean()) ** 2).sum() / 2
    rows_ms, columns_ms = 3 * (seeds**2).sum(), 2 * (episodes**2).sum() / 2
    total = max(rows_ms + columns_ms - rest, rows_ms, columns_ms)
    dof = max(total**2 / (rows_ms**2 / 1 + columns_ms**2 / 2 + rest**2 / 2), 1)
    half = stats.t.ppf(0.975, dof) * np.sqrt(total / 6)
    assert other.change_interval == pytest.approx((d.mean() - half, d.mean() + half))
    attempts = rows["scaffold", "success_rate"]
    assert (attempts.evaluated_on, attempts.mean, attempts.change) == ("held out", 0.75, 0.5)
    assert rows["scaffold", "action_error"].change_interval is None, "all differences are equal"


def test_what_cannot_be_compared() -> None:
    with pytest.raises(EvaluationError, match="scaffold, seed 0: states and actions are normalized with other stat"):
        variant_summaries([run("fedavg", 0), run("scaffold", 0, statistics="t")])
    with pytest.raises(EvaluationError, match="scaffold and fedavg were evaluated on different episodes"):
        variant_summaries([run("fedavg", 0), run("scaffold", 0, episodes=2)])


@pytest.mark.parametrize(
    ("varied", "message"),
    [
        ({"rounds": [1]}, "1 combinations, expected 2 to 64"),
        ({}, "0 combinations"),
        ({"rounds": [1, 1]}, "--vary rounds: a value is listed twice"),
        ({"seed": [1, 2]}, "--vary seed: set by the comparison itself"),
        ({"evaluation.every_frames": [8, 16]}, "--vary evaluation.every_frames: changes data, normalization or evalu"),
        ({"normalization": ["pooled", "client"]}, "--vary normalization: changes data"),
    ],
)
def test_variants_that_cannot_be(varied: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        variants_of(varied)


@pytest.mark.parametrize("pair", ["rounds", "=1,2", "rounds=1,,2"])
def test_options_that_cannot_be_read(pair: str) -> None:
    with pytest.raises(SettingsError, match="expected NAME=V1,V2"):
        parse_varied([pair])


def test_the_files(tmp_path: Path) -> None:
    from zk0.report.variant_files import write_variant_files

    summaries = variant_summaries(RUNS)
    write_variant_files(tmp_path, RUNS, summaries, "2 seeds")
    first = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    names = {"summary.csv", "values.csv", "values.parquet", "table.md", "table.tex", "chart.svg", "chart.pdf"}
    assert first.keys() == names
    values = pd.read_parquet(tmp_path / "values.parquet")
    losses = values[(values.metric == "policy_loss") & (values.variant == "scaffold")]
    assert losses.sort_values(["seed", "unit"]).value.tolist() == [x for row in LOSSES["scaffold"] for x in row]
    assert len(pd.read_csv(tmp_path / "values.csv")) == len(values) == 2 * 2 * (3 + 3 + 2)
    summary = pd.read_csv(tmp_path / "summary.csv")
    changes = [s.change for s in summaries if s.change is not None]
    assert summary[summary.variant == "scaffold"].change.tolist() == pytest.approx(changes)
    assert "| policy loss | unseen | scaffold | 2 | 3 | 0.5617" in (tmp_path / "table.md").read_text()
    latex = (tmp_path / "table.tex").read_text()
    assert r"policy loss & unseen & scaffold & 2 & 3 & 0.5617 (" in latex
    assert latex.count(r"\\") == 1 + len(summaries)
    assert first["chart.svg"].startswith(b"<?xml")
    assert b"scaffold" in first["chart.svg"]
    assert first["chart.pdf"].startswith(b"%PDF")
    write_variant_files(tmp_path, RUNS, summaries, "2 seeds")
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == first

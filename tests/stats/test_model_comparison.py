"""Comparison of folders: paired if the evaluations are comparable, else refused with the reason."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from scipy import stats
from typer.testing import CliRunner

from flows.cli.main import zk0_app
from zk0.audit.ledger import Ledger
from zk0.errors import EvaluationError, SettingsError
from zk0.records import (
    Checkpoint,
    ClientEvaluation,
    ClientScore,
    EpisodeScore,
    Evaluation,
    Rollout,
    RoundRecord,
    SetScore,
)
from zk0.stats.model_comparison import compare_models, parse_metrics, read_model_results

DIGEST = "d" * 64


def scored(dataset: str, losses: list[float]) -> SetScore:
    episodes = tuple(
        EpisodeScore(episode=i, frames=5, actions=10, policy_loss=x, action_error_degrees=10 * x)
        for i, x in enumerate(losses)
    )
    mean = sum(losses) / len(losses)
    return SetScore(
        dataset=dataset, episodes=episodes, frames=25, policy_loss=mean, policy_loss_se=None,
        action_error_degrees=10 * mean, joint_error_degrees=(), horizon_error_degrees=(),
    )  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Callable[..., Path]:
    """A session folder with one evaluated round and attempts at one task."""

    def make(name: str, losses: list[float], successes: str = "0101", **changes: Any) -> Path:
        here = tmp_path / name
        settings = {"round": 0, "normalization": "pooled", "seed": 7, "times": 8, "seconds": 1.0}
        settings |= changes.pop("settings", {})
        sets = (scored("local:/x/unseen", losses),)
        evaluation = Evaluation(policy_loss=1, policy_loss_se=None, action_error_degrees=1, sets=sets, **settings)
        client_evaluation = ClientEvaluation(scores=(ClientScore(client="a", score=scored("x/a", losses)),), **settings)
        record = RoundRecord(
            round=0, checkpoint=Checkpoint(round=0, path="w", digest=DIGEST, bytes=1), evaluation=evaluation,
            client_evaluation=client_evaluation, seconds=1, finished_at="",
        )  # fmt: skip
        here.mkdir()
        (here / "session.toml").write_text(f"rounds = 1\n[training]\nlr = {changes.get('lr', 1e-4)}\n")
        Ledger(here / "ledger.jsonl").append(record)
        (here / "session_setup.json").write_text(json.dumps({"statistics": changes.pop("statistics", "same")}))
        (here / "evaluate").mkdir()
        for seed, result in enumerate(successes):
            attempt = Rollout(
                round=0, checkpoint=DIGEST, task="lift-red", seed=seed, success=result == "1", steps=3,
                duration_seconds=0.3, fps=10, smoothness=None, conditions_digest=changes.get("conditions", "c"),
            )  # fmt: skip
            (here / f"evaluate/rollout_{seed}.json").write_text(attempt.model_dump_json())
        return here

    return make


BEFORE, AFTER = [1.0, 2.0, 3.0, 4.0], [0.8, 1.9, 2.6, 3.7]


def test_differences_are_paired_over_episodes_and_attempts(folder: Callable[..., Path]) -> None:
    one, other = (read_model_results(folder(n, v, w)) for n, v, w in (("a", BEFORE, "0010"), ("b", AFTER, "0111")))
    loss, held_out, degrees, _, rate = compare_models(one, other, ("policy_loss", "action_error", "success_rate"))
    ends = stats.ttest_rel(AFTER, BEFORE).confidence_interval(0.95)
    assert (loss.subject, loss.pairs) == ("local:unseen", 4)
    assert (loss.before, loss.after, loss.change) == pytest.approx((2.5, 2.25, -0.25))
    assert loss.interval == pytest.approx((ends.low, ends.high))
    assert held_out.subject == "held out by a"
    assert degrees.change == pytest.approx(-2.5)
    assert (rate.subject, rate.pairs, rate.before, rate.after, rate.change) == ("lift-red", 4, 0.25, 0.75, 0.5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"statistics": "other"}, "policy_loss: a was evaluated with statistics"),
        ({"settings": {"normalization": "client"}}, "with normalization pooled, b with client"),
        ({"settings": {"seed": 8}}, "with seed 7, b with 8"),
        ({"settings": {"times": 4}}, "with times per frame 8, b with 4"),
        ({"losses": AFTER[:3]}, "not the same frames"),
        ({"conditions": "other"}, "attempted lift-red under different conditions"),
        ({"successes": "01"}, "2 attempts exist in only one of a and b, first: lift-red, seed 2"),
    ],
)
def test_models_that_were_evaluated_differently_are_refused(
    folder: Callable[..., Path], change: dict[str, Any], message: str
) -> None:
    one = read_model_results(folder("a", BEFORE))
    other = read_model_results(folder("b", **{"losses": AFTER} | change))
    with pytest.raises(EvaluationError, match=message):
        compare_models(one, other)


def test_degrees_are_compared_across_statistics(folder: Callable[..., Path]) -> None:
    one, other = read_model_results(folder("a", BEFORE)), read_model_results(folder("b", AFTER, statistics="other"))
    assert len(compare_models(one, other, ("action_error",))) == 2


def test_folders_of_rollouts_have_attempts_only(folder: Callable[..., Path]) -> None:
    one, other = folder("a", BEFORE, "0000"), folder("b", AFTER, "1111")
    measured = [read_model_results(place / "evaluate") for place in (one, other)]
    (rate,) = compare_models(*measured, ("success_rate",))
    assert (rate.before, rate.after) == (0.0, 1.0)
    assert rate.interval is not None
    assert rate.interval[0] > 0
    with pytest.raises(EvaluationError, match="policy_loss: evaluate and evaluate have no evaluation in common"):
        compare_models(*measured, ("policy_loss",))
    file = other / "evaluate/rollout_0.json"
    (other / "evaluate/rollout_9.json").write_text(file.read_text().replace(DIGEST, "e" * 64))
    with pytest.raises(EvaluationError, match="holds attempts of 2 models; name the folder of one"):
        read_model_results(other / "evaluate")
    with pytest.raises(EvaluationError, match="no results; expected"):
        read_model_results(one / "nowhere")


def test_zk0_compare_shows_which_settings_differ_and_the_metrics_that_are_there(folder: Callable[..., Path]) -> None:
    one, other = folder("a", BEFORE), folder("b", AFTER, lr=2e-4, statistics="other")
    shown = CliRunner().invoke(zk0_app, ["compare", str(one), str(other)])
    assert shown.exit_code == 0, shown.output
    assert ["training.lr", "0.0001", "0.0002"] in [line.split() for line in shown.output.splitlines()]
    assert "rounds" not in shown.output
    assert "not compared: policy_loss: a was evaluated with statistics" in shown.output
    assert "action error (degrees)" in shown.output
    (found,) = json.loads(CliRunner().invoke(zk0_app, ["compare", str(one), str(other), "--json"]).stdout)
    assert found["settings"] == [["training.lr", "0.0001", "0.0002"]]
    assert {row["metric"] for row in found["rows"]} == {"action_error", "success_rate"}
    nothing = CliRunner().invoke(zk0_app, ["compare", str(one), str(folder("c", AFTER[:3], "01", statistics="other"))])
    assert nothing.exit_code == 1
    assert "not the same frames" in nothing.output


def test_a_rollout_folder_has_no_settings(folder: Callable[..., Path]) -> None:
    one, other = folder("a", BEFORE), folder("b", AFTER)
    shown = CliRunner().invoke(zk0_app, ["compare", str(one / "evaluate"), str(other / "evaluate")])
    assert shown.exit_code == 0, shown.output
    assert "settings that differ" not in shown.output
    assert "success rate" in shown.output


def test_zk0_compare(folder: Callable[..., Path]) -> None:
    one, other, bad = folder("a", BEFORE), folder("b", AFTER), folder("c", AFTER, settings={"seed": 8})
    options = ["--metrics", "policy_loss,success_rate", "--json"]
    done = CliRunner().invoke(zk0_app, ["compare", str(one), str(other), *options])
    assert done.exit_code == 0, done.output
    (found,) = json.loads(done.stdout)
    assert (found["before"], found["after"], len(found["rows"])) == ("a", "b", 3)
    shown = CliRunner().invoke(zk0_app, ["compare", str(one), str(other)])
    assert "b, round 0 against a, round 0" in shown.output
    lines = [line.split() for line in shown.output.splitlines() if "-0.250" in line]
    assert lines[0][-1] == "better"
    assert all(len(line) <= 80 for line in shown.output.splitlines()), "an interval stays on its line"
    refused = CliRunner().invoke(zk0_app, ["compare", str(one), str(bad), "--metrics", "policy_loss"])
    assert refused.exit_code == 1
    assert "only models that were evaluated in the same way can be compared" in refused.output
    alone = CliRunner().invoke(zk0_app, ["compare", str(one)])
    assert "expected two or more folders" in alone.output
    with pytest.raises(SettingsError, match="unknown metric 'speed'"):
        parse_metrics("policy_loss,speed")

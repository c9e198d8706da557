"""The joining report: each number against the same training and evaluation by hand."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from zk0.errors import EvaluationError
from zk0.settings.dataset_settings import ClientSettings
from zk0.settings.plans import EvaluationPlan, JoiningReportPlan, RoundPlan, SessionTerms


@pytest.fixture
def client_in(recordings: dict[str, Path], terms: SessionTerms, shared_cache: Path) -> Callable[[Path], Any]:
    from zk0.client.client import Client

    two = terms.model_copy(update={"data": terms.data.model_copy(update={"holdout_episodes": 2})})

    def make(scratch: Path) -> Any:
        scratch.mkdir(parents=True, exist_ok=True)
        return Client(ClientSettings(name="a", dataset=f"local:{recordings['a']}"), two, scratch, shared_cache)

    return make


def test_four_models(
    client_in: Callable[[Path], Any], start: tuple[Path, str], plan: Callable[..., RoundPlan], tmp_path: Path
) -> None:
    from zk0.client.joining_report import evaluate_joining, train_locally
    from zk0.stats.intervals import set_improvement
    from zk0.stats.joining_comparison import JoiningReport

    by_hand, client = client_in(tmp_path / "hand"), client_in(tmp_path / "node")
    common = {"terms": client.terms}
    first = by_hand.train(plan(lr=1e-3, **common), start[0])
    second = by_hand.train(plan(lr=5e-4, round=2, global_digest=first.digest, **common), Path(first.path))
    shared = {n: getattr(plan(**common), n) for n in ("terms", "client", "recipe", "statistics", "training")}
    shared |= {"round": 2, "times": 2, "batch_size": 8, "every_frames": 1}

    def evaluate(path: Path, digest: str) -> Any:
        return by_hand.evaluate(EvaluationPlan(global_digest=digest, **shared), path).score.without_step_errors()

    final = Path(first.path).with_name("final.safetensors")
    final.write_bytes(Path(second.path).read_bytes())  # any weights can stand for the global model
    report_plan = JoiningReportPlan(global_digest=start[1], lrs=(1e-3, 5e-4), scheduler=plan().scheduler, **shared)
    with pytest.raises(EvaluationError, match="has not trained locally"):
        evaluate_joining(client, report_plan.model_copy(update={"global_digest": second.digest}), final)
    train_locally(client, report_plan, start[0])
    report = evaluate_joining(client, report_plan.model_copy(update={"global_digest": second.digest}), final)

    third = by_hand.train(plan(lr=5e-4, round=3, global_digest=second.digest, **common), final)
    assert report.models["base"] == evaluate(*start)
    assert report.models["local_only"] == report.models["federated"] == evaluate(Path(second.path), second.digest)
    assert report.models["fine_tuned"] == evaluate(Path(third.path), third.digest)
    assert report.improvements["base-federated"] == set_improvement(report.models["base"], report.models["federated"])
    assert report.improvements["local_only-federated"].value == 0
    assert report.losses["base"].value == pytest.approx(report.models["base"].policy_loss)

    assert JoiningReport.model_validate_json((tmp_path / "node/joining.json").read_text()) == report
    page = (tmp_path / "node/joining.md").read_text()
    assert "The federation's model does not differ significantly from your own training without the others" in page
    assert f"| {report.models['base'].policy_loss:.4f} (" in page
    assert "2 held-out episode(s)" in page
    assert not list((tmp_path / "node").glob("sessions/*"))  # the session's own updates are not touched
    assert not list((tmp_path / "node").rglob("*.safetensors"))


def test_a_joining_report_that_takes_too_long(
    client_in: Callable[[Path], Any], start: tuple[Path, str], plan: Callable[..., RoundPlan], tmp_path: Path
) -> None:
    from zk0.client.joining_report import train_locally
    from zk0.errors import FederationError

    client, calls = client_in(tmp_path), list[None]()

    def stop() -> None:
        calls.append(None)
        if len(calls) == 7:
            raise FederationError("late")

    shared = {n: getattr(plan(terms=client.terms), n) for n in ("terms", "client", "recipe", "statistics", "training")}
    shared |= {"round": 2, "times": 2, "batch_size": 8, "every_frames": 1, "global_digest": start[1]}
    with pytest.raises(FederationError, match="late"):
        train_locally(client, JoiningReportPlan(lrs=(1e-3,) * 9, scheduler=plan().scheduler, **shared), start[0], stop)
    assert len(calls) == 7


def test_one_episode_has_no_interval() -> None:
    from zk0.client.joining_report import _comparison
    from zk0.stats.intervals import Estimate

    unsure = Estimate(value=0.1, se=None, dof=None)
    assert "this allows no conclusion" in _comparison(unsure, "It", "x")
    worse = Estimate(value=-0.3, se=0.01, dof=9.0)
    assert _comparison(worse, "It", "x").startswith("It has a higher loss than x: by 0.3000 (0.2774 to 0.3226)")

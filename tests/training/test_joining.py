"""What joining has brought a client: each number against the steps it stands for, done by hand."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from zk0.errors import EvaluationError
from zk0.session import ClientSettings, EvaluationPlan, JoiningPlan, RoundPlan, Terms


@pytest.fixture
def client_in(recordings: dict[str, Path], terms: Terms, kept: Path) -> Callable[[Path], Any]:
    from zk0.training.client import Client

    two = terms.model_copy(update={"data": terms.data.model_copy(update={"holdout_episodes": 2})})

    def make(scratch: Path) -> Any:
        scratch.mkdir(parents=True, exist_ok=True)
        return Client(ClientSettings(name="a", dataset=f"local:{recordings['a']}"), two, scratch, kept)

    return make


def test_four_models(
    client_in: Callable[[Path], Any], start: tuple[Path, str], plan: Callable[..., RoundPlan], tmp_path: Path
) -> None:
    from zk0.interval import set_fall
    from zk0.training.joining import JoiningReport, judge_joined, train_alone

    by_hand, client = client_in(tmp_path / "hand"), client_in(tmp_path / "node")
    common = {"terms": client.terms}
    first = by_hand.train(plan(lr=1e-3, **common), start[0])
    second = by_hand.train(plan(lr=5e-4, round=2, global_digest=first.digest, **common), Path(first.path))
    shared = {n: getattr(plan(**common), n) for n in ("terms", "client", "recipe", "statistics", "training")}
    shared |= {"round": 2, "times": 2, "batch_size": 8, "every_frames": 1}

    def judged(path: Path, digest: str) -> Any:
        return by_hand.evaluate(EvaluationPlan(global_digest=digest, **shared), path).score

    final = Path(first.path).with_name("final.safetensors")
    final.write_bytes(Path(second.path).read_bytes())  # any weights will do as the global model
    asked = JoiningPlan(global_digest=start[1], lrs=(1e-3, 5e-4), scheduler=plan().scheduler, **shared)
    with pytest.raises(EvaluationError, match="has not trained alone"):
        judge_joined(client, asked.model_copy(update={"global_digest": second.digest}), final)
    train_alone(client, asked, start[0])
    report = judge_joined(client, asked.model_copy(update={"global_digest": second.digest}), final)

    third = by_hand.train(plan(lr=5e-4, round=3, global_digest=second.digest, **common), final)
    assert report.models["base"] == judged(*start)
    assert report.models["alone"] == report.models["federated"] == judged(Path(second.path), second.digest)
    assert report.models["adapted"] == judged(Path(third.path), third.digest)
    assert report.falls["base-federated"] == set_fall(report.models["base"], report.models["federated"])
    assert report.falls["alone-federated"].value == 0
    assert report.losses["base"].value == pytest.approx(report.models["base"].policy_loss)

    assert JoiningReport.model_validate_json((tmp_path / "node/joining.json").read_text()) == report
    page = (tmp_path / "node/joining.md").read_text()
    assert "The federation's model cannot be told from your own training alone" in page
    assert f"| {report.models['base'].policy_loss:.4f} (" in page
    assert "2 held-out episode(s)" in page
    assert not list((tmp_path / "node" / "updates").glob("*"))  # those of the session are not touched


def test_one_episode_has_no_interval() -> None:
    from zk0.interval import Estimate
    from zk0.training.joining import _verdict

    unsure = Estimate(value=0.1, se=None, dof=None)
    assert "nothing can be said" in _verdict(unsure, "It", "x")
    worse = Estimate(value=-0.3, se=0.01, dof=9.0)
    assert _verdict(worse, "It", "x").startswith("It has a higher loss than x: by 0.3000 (0.2774 to 0.3226)")

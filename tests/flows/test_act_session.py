"""deployments/sessions/act.toml as it stands, and the start policy that docs/policies.md makes."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SNIPPET = re.compile(r"```python\n(.*?)```", re.DOTALL)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def test_the_session_trains_evaluates_films_rolls_out_and_saves(tmp_path: Path) -> None:
    from lerobot.policies.act.modeling_act import ACTPolicy

    import zk0
    from zk0.weights.digests import load_weights

    where = {"output_dir": str(tmp_path / "outputs"), "cache_dir": str(tmp_path / "cache")}
    results = zk0.run(ROOT / "deployments/sessions/act.toml", where)
    here = results.folder
    ledger = [json.loads(line)["record"] for line in here.ledger.read_text().splitlines()]
    assert len({line["checkpoint"]["digest"] for line in ledger}) == 3
    assert [len(line["updates"]) for line in ledger] == [0, 2, 2]
    assert all(line["evaluation"]["policy_loss"] > 0 for line in ledger)
    videos = {path.parent.name for path in here.path.glob("evaluate/round_2/*/rollout_*.mp4")}
    assert videos == {"lift-red", "place-purple-white", "place-red-blue"}
    saved = here.checkpoint(2)
    loaded, weights = ACTPolicy.from_pretrained(saved), load_weights(here.weights(2))
    assert all((dict(loaded.named_parameters())[name].detach().numpy() == weights[name]).all() for name in weights)
    card = (saved / "README.md").read_text()
    assert "An ACT policy for a robot arm with 6 joints" in card
    assert "loss is the mean absolute error of the normalized actions" in card
    assert not re.search("SmolVLA|action expert|flow matching|bundled", card)
    assert "ACT (tiny-act)" in (here.path / "report.html").read_text()


def test_the_start_policy_of_the_documentation_can_be_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without ImageNet's weights, which would be downloaded."""
    from zk0.policy.build import build_policy
    from zk0.policy.config_faults import policy_config_faults
    from zk0.policy.policy_shapes import read_policy_sizes
    from zk0.records import PolicyRecipe
    from zk0.settings.loading import load_session

    (snippet,) = SNIPPET.findall((ROOT / "docs/policies.md").read_text())
    monkeypatch.chdir(tmp_path)
    exec(snippet.replace("ACTConfig(\n", "ACTConfig(\n    pretrained_backbone_weights=None,\n"), {})
    changes = {"policy.path": "start-act", "cache_dir": "cache"}
    session = load_session(ROOT / "deployments/sessions/act.toml", changes, base=tmp_path)
    assert policy_config_faults(session) == []
    recipe = PolicyRecipe(path=session.policy.path, cameras=session.contract.cameras, joints=6, seed=1)
    policy = build_policy(recipe, tmp_path)
    assert sum(p.numel() for p in policy.parameters()) == pytest.approx(51.6e6, rel=1e-3)
    assert read_policy_sizes(session.policy).trainable == pytest.approx(51.6e6, rel=1e-2)

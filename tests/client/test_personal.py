"""Parameters that a client trains and keeps for itself: `training.personal`."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from zk0.errors import PolicyError, SettingsError
from zk0.records import Statistics
from zk0.settings.dataset_settings import ClientSettings
from zk0.settings.loading import parse_session
from zk0.settings.plans import EvaluationPlan, RoundPlan, SessionTerms
from zk0.weights.control_variates import CONTROL_PREFIX
from zk0.weights.digests import digest as digest_of
from zk0.weights.digests import load_weights
from zk0.weights.writer import save_weights

PERSONAL = ("model.action_out_proj.*", "model.state_proj.bias")
NAMES = {"model.action_out_proj.weight", "model.action_out_proj.bias", "model.state_proj.bias"}


@pytest.fixture
def client_of(
    recordings: dict[str, Path], terms: SessionTerms, tmp_path: Path, shared_cache: Path
) -> Callable[..., Any]:
    from zk0.client.client import Client

    def make(name: str = "a", folder: str = "scratch") -> Any:
        settings = ClientSettings(name=name, dataset=f"local:{recordings[name]}")
        return Client(settings, terms, tmp_path / folder / name, shared_cache)

    return make


@pytest.fixture
def global_weights(start: tuple[Path, str], tmp_path: Path) -> tuple[Path, str]:
    """Those of round 0 that are sent: path and digest."""
    sent = {name: weights for name, weights in load_weights(start[0]).items() if name not in NAMES}
    return tmp_path / "sent.safetensors", save_weights(tmp_path / "sent.safetensors", sent)[0]


@pytest.fixture
def personal_plan(plan: Callable[..., RoundPlan], global_weights: tuple[Path, str]) -> Callable[..., RoundPlan]:
    """Makes a plan whose personal parameters are `PERSONAL`."""

    def make(training: dict[str, Any] | None = None, **changes: Any) -> RoundPlan:
        recipe = plan().recipe.model_copy(update={"personal": PERSONAL})
        values = {"recipe": recipe, "global_digest": global_weights[1]} | changes
        return plan({"personal": PERSONAL, "local_steps": 3} | (training or {}), **values)

    return make


def evaluation_of(plan: RoundPlan, **changes: Any) -> EvaluationPlan:
    shared = plan.model_dump(include=set(EvaluationPlan.model_fields))
    return EvaluationPlan(**shared | {"times": 2, "batch_size": 8, "every_frames": 6} | changes)


def kept(client: Any, round_number: int = 1) -> dict[str, np.ndarray]:
    (file,) = client.scratch.glob(f"sessions/*/personal-{round_number:03d}.safetensors")
    return dict(load_weights(file))


def merged(sent: Path, own: dict[str, np.ndarray], target: Path) -> tuple[Path, str]:
    weights = {**load_weights(sent), **own}
    return target, save_weights(target, {name: weights[name] for name in sorted(weights)})[0]


def assert_equal(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    assert all(found[name].tobytes() == expected[name].tobytes() for name in found)


def test_two_rounds_train_all_and_send_a_part(
    client_of: Callable[..., Any],
    plan: Callable[..., RoundPlan],
    personal_plan: Callable[..., RoundPlan],
    start: tuple[Path, str],
    global_weights: tuple[Path, str],
    tmp_path: Path,
) -> None:
    """To the bit as training that sends everything; the second round begins with the client's own values."""
    client, whole = client_of(), client_of(folder="whole")
    update = client.train(personal_plan(), global_weights[0])
    expected = load_weights(Path(whole.train(plan({"local_steps": 3}), start[0]).path))
    assert_equal(load_weights(Path(update.path)), {n: w for n, w in expected.items() if n not in NAMES})
    assert_equal(kept(client), {n: w for n, w in expected.items() if n in NAMES})
    other = client_of("b").train(personal_plan(client="b"), global_weights[0])  # with the same policy in this process
    assert other.digest != update.digest

    second = client.train(personal_plan(round=2), global_weights[0])
    begin, digest = merged(global_weights[0], kept(client), tmp_path / "begin.safetensors")
    again = whole.train(plan({"local_steps": 3}, round=2, global_digest=digest), begin)
    expected = load_weights(Path(again.path))
    assert_equal(load_weights(Path(second.path)), {n: w for n, w in expected.items() if n not in NAMES})
    assert_equal(kept(client, 2), {n: w for n, w in expected.items() if n in NAMES})
    from_start = client_of(folder="new").train(personal_plan(round=2), global_weights[0])
    assert from_start.digest != second.digest


def test_a_round_that_is_trained_again_begins_with_the_same_values(
    client_of: Callable[..., Any], personal_plan: Callable[..., RoundPlan], global_weights: tuple[Path, str]
) -> None:
    client = client_of()
    client.train(personal_plan(), global_weights[0])
    second = client.train(personal_plan(round=2), global_weights[0])
    before = kept(client, 2)
    Path(second.path).unlink()
    assert client.train(personal_plan(round=2), global_weights[0]).digest == second.digest
    assert_equal(kept(client, 2), before)
    client.train(personal_plan(round=3), global_weights[0])
    assert sorted(p.name for p in client.scratch.glob("sessions/*/personal-*")) == [
        "personal-002.safetensors", "personal-003.safetensors",
    ]  # fmt: skip


def test_the_proximal_term_and_control_variates_leave_them_out(
    client_of: Callable[..., Any],
    personal_plan: Callable[..., RoundPlan],
    start: tuple[Path, str],
    global_weights: tuple[Path, str],
) -> None:
    before = load_weights(start[0])
    client = client_of()
    update = client.train(personal_plan(mu=1e4, use_control_variates=True), global_weights[0])
    sent = load_weights(Path(update.path))
    control = {name.removeprefix(CONTROL_PREFIX) for name in sent if name.startswith(CONTROL_PREFIX)}
    assert control
    assert control == before.keys() - NAMES
    moved = sum(float(((sent[n].astype(float) - before[n]) ** 2).sum()) for n in before.keys() - NAMES)
    assert update.metrics.update_norm == pytest.approx(moved**0.5, rel=1e-5)
    free = client_of(folder="free")
    free.train(personal_plan(use_control_variates=True), global_weights[0])
    distance = [np.abs(kept(c)["model.action_out_proj.weight"] - before["model.action_out_proj.weight"]).mean()
                for c in (client, free)]  # fmt: skip
    assert distance[0] > 0.3 * distance[1]


def test_both_policies_are_evaluated_and_the_clients_own_is_saved(
    client_of: Callable[..., Any],
    plan: Callable[..., RoundPlan],
    personal_plan: Callable[..., RoundPlan],
    start: tuple[Path, str],
    global_weights: tuple[Path, str],
    statistics: Statistics,
    tmp_path: Path,
) -> None:
    from lerobot_policy_smolvla_bundled import BundledSmolVLAPolicy
    from zk0.policy.stored_statistics import read_stored_moments

    client = client_of()
    assert client.evaluate(evaluation_of(personal_plan(), save_personal=True), global_weights[0]).personal is None
    client.train(personal_plan(lr=1e-2), global_weights[0])
    found = client.evaluate(evaluation_of(personal_plan(), save_personal=True), global_weights[0])
    assert found.score == client_of(folder="x").evaluate(evaluation_of(plan({"local_steps": 3})), start[0]).score
    own, digest = merged(global_weights[0], kept(client), tmp_path / "own.safetensors")
    merged_plan = evaluation_of(plan({"local_steps": 3}, global_digest=digest))
    assert found.personal == client_of(folder="y").evaluate(merged_plan, own).score
    assert found.personal.policy_loss != found.score.policy_loss

    (folder,) = (client.scratch / "personal").iterdir()
    loaded = dict(BundledSmolVLAPolicy.from_pretrained(folder).named_parameters())
    weights = load_weights(own)
    assert digest_of({n: loaded[n].detach().numpy() for n in weights}) == digest
    moments = read_stored_moments(str(folder), ["action"])["action"]
    assert moments["mean"] == pytest.approx(np.array(statistics.action.mean), rel=1e-6)
    card = (folder / "README.md").read_text()
    assert "session test after round 1" in card
    assert "`model.state_proj.bias`" in card


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        (
            ("model.actn_out_proj.*",),
            "training.personal: model.actn_out_proj.* matches no parameter of training.scope; ",
        ),
        (("model.vlm_with_expert.vlm.*",), "vlm.* matches no parameter of training.scope"),
        (("model.*",), "parameters of training.scope match, so that none would be sent"),
    ],
)
def test_patterns_that_cannot_be_personal(
    plan: Callable[..., RoundPlan], shared_cache: Path, patterns: tuple[str, ...], message: str
) -> None:
    from zk0.policy.build import build_policy
    from zk0.policy.config_faults import policy_config_faults

    with pytest.raises(PolicyError) as found:
        build_policy(plan().recipe.model_copy(update={"personal": patterns}), shared_cache)
    assert message in str(found.value)
    session = parse_session(SESSION | {"training": {"personal": patterns}, "cache_dir": str(shared_cache)}, "test")
    (fault,) = policy_config_faults(session)
    assert message in fault


SESSION: dict[str, Any] = {
    "clients": [{"name": n, "dataset": f"lab/{n}"} for n in "ab"],
    "evaluation": {"datasets": [{"dataset": "lab/c"}]},
    "policy": {"path": "tiny"},
}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"training": {"personal": PERSONAL, "scope": "lora"}}, "training: personal with scope lora"),
        ({"training": {"personal": ["no name"]}}, "training.personal.0: String should match pattern"),
        ({"data": {"holdout_episodes": 0}}, "training.personal needs data.holdout_episodes and"),
        ({"evaluation": SESSION["evaluation"] | {"clients_frequency": 0}}, "training.personal needs data.holdout_epis"),
        ({"evaluation": SESSION["evaluation"] | {"joining_report": True}}, "joining_report with training.personal"),
        ({"federation": {"engine": "ray", "ray_address": "10.0.0.1:6379"}}, "ray_address with training.personal"),
    ],
)
def test_settings_that_do_not_fit(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError) as found:
        parse_session(SESSION | {"training": {"personal": PERSONAL}} | changes, "test")
    assert message in str(found.value)


def test_a_plan_whose_recipe_has_other_personal_parameters_is_refused(
    plan: Callable[..., RoundPlan], personal_plan: Callable[..., RoundPlan]
) -> None:
    with pytest.raises(ValueError, match=r"personal are .*action_out_proj.* in the recipe, .* in training"):
        plan(recipe=personal_plan().recipe)


def test_an_update_with_personal_weights_is_refused(
    client_of: Callable[..., Any],
    plan: Callable[..., RoundPlan],
    start: tuple[Path, str],
    global_weights: tuple[Path, str],
) -> None:
    from zk0.aggregation.verify import verify_update
    from zk0.records import Refusal

    update = client_of().train(plan({"local_steps": 1}), start[0])
    wrong = update.model_copy(update={"global_digest": global_weights[1]})
    found = verify_update(
        wrong, round=1, global_digest=global_weights[1], global_path=global_weights[0], already_received=()
    )
    assert isinstance(found, Refusal)
    assert "model.action_out_proj" in found.reason


def test_the_report_shows_both_losses(personal_records: list[Any]) -> None:
    from zk0.report.tables.client_tables import client_round_table

    table = client_round_table(personal_records)
    titles = [column.title for column in table.columns]
    at = titles.index("held-out loss, own policy")
    assert titles[at - 1] == "held-out loss"
    assert [(row[1].text, row[at - 1].text, row[at].text) for row in table.rows] == [("a", "0.900", "0.700")]


@pytest.fixture
def personal_records() -> list[Any]:
    from zk0.records import (
        Checkpoint,
        ClientEvaluation,
        ClientMetrics,
        ClientScore,
        EpisodeScore,
        RoundRecord,
        SetScore,
        Update,
    )

    def score(loss: float) -> SetScore:
        episode = EpisodeScore(episode=2, frames=3, actions=9, policy_loss=loss, action_error_degrees=1.0)
        return SetScore(
            dataset="lab/a", episodes=(episode,), frames=3, policy_loss=loss, policy_loss_se=None,
            action_error_degrees=1.0, joint_error_degrees=(1.0,), horizon_error_degrees=(1.0,),
        )  # fmt: skip

    ones = dict.fromkeys(("policy_loss", "fedprox_loss", "grad_norm", "update_norm", "lr_first", "lr_last"), 1.0)
    metrics = ClientMetrics(**ones, local_steps=1, seconds=1.0)
    update = Update(
        client="a", round=1, global_digest="0", path="x", digest="0", bytes=1, examples=9, dataset="lab/a",
        metrics=metrics,
    )  # fmt: skip
    scores = (ClientScore(client="a", score=score(0.9), personal=score(0.7)),)
    evaluation = ClientEvaluation(round=1, scores=scores, normalization="pooled", seed=1, times=1, seconds=1.0)
    assert json.loads(scores[0].model_dump_json())["personal"]["policy_loss"] == 0.7
    checkpoint = Checkpoint(round=1, path="w", digest="0", bytes=1)
    return [
        RoundRecord(
            round=1, checkpoint=checkpoint, updates=(update,), client_evaluation=evaluation, seconds=1.0, finished_at=""
        )
    ]

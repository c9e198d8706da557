"""Which parameters are trained: `training.scope`."""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from full_policy_tensors import CONFIG, full_policy_tensors

from zk0.errors import PolicyError
from zk0.policy.config_faults import policy_config_faults
from zk0.policy.policy_shapes import read_policy_sizes, shapes_of_tensors
from zk0.records import Moments, PolicyRecipe, Statistics
from zk0.settings.loading import parse_session
from zk0.settings.training_settings import LocalTrainingSettings, PolicySettings

VLM = "model.vlm_with_expert.vlm."
EXPERT = "model.vlm_with_expert.lm_expert."
MOMENTS = Moments(count=9, mean=(1.0,) * 6, std=(2.0,) * 6, min=(-5.0,) * 6, max=(5.0,) * 6)


def trained(policy: Any) -> set[str]:
    return {name for name, parameter in policy.named_parameters() if parameter.requires_grad}


@pytest.fixture
def built(shared_cache: Path) -> Callable[..., Any]:
    """Return a function that builds a policy whose parameters that match are trained."""
    from zk0.policy.build import build_policy

    def make(*patterns: str, path: str = "tiny") -> Any:
        recipe = PolicyRecipe(path=path, cameras=("overhead", "wrist"), joints=6, seed=1, trained=patterns)
        return build_policy(recipe, shared_cache)

    return make


def test_all_is_what_lerobot_trains_of_an_unfrozen_policy(built: Callable[..., Any]) -> None:
    from lerobot_policy_smolvla_bundled import BundledSmolVLAConfig, BundledSmolVLAPolicy

    policy = built("*")
    values = {n: getattr(policy.config, n) for n in asdict(policy.config) if n != "type"}
    unfrozen = BundledSmolVLAPolicy(
        BundledSmolVLAConfig(**values | {"train_expert_only": False, "freeze_vision_encoder": False})
    )
    assert trained(policy) == trained(unfrozen)
    assert trained(policy) > trained(built())
    assert any(n.startswith(f"{VLM}model.vision_model.") for n in trained(policy))
    assert not any("lm_head" in n or "text_model.layers.3." in n for n in trained(policy))
    modes = {}
    for one in (policy, unfrozen):
        one.train()
        modes[id(one)] = {n: m.training for n, m in one.named_modules()}
    assert modes[id(policy)] == modes[id(unfrozen)]
    assert policy.config.train_expert_only is False
    assert policy.config.freeze_vision_encoder is False


def test_patterns_are_whole_names(built: Callable[..., Any]) -> None:
    """Action expert and language model share suffixes."""
    policy = built(f"{EXPERT}layers.*.q_proj.weight", "model.state_proj.*")
    layers = {f"{EXPERT}layers.{layer}.self_attn.q_proj.weight" for layer in range(4)}
    assert trained(policy) == layers | {"model.state_proj.weight", "model.state_proj.bias"}
    assert policy.config.train_expert_only is True
    assert {p.dtype for p in policy.parameters()} == {torch.float32}
    assert trained(built("*_proj.bias")) >= {"model.state_proj.bias", "model.action_in_proj.bias"}


def test_the_language_model_without_the_vision_encoder(built: Callable[..., Any]) -> None:
    policy = built(f"{VLM}model.text_model.*")
    assert (policy.config.train_expert_only, policy.config.freeze_vision_encoder) == (False, True)
    policy.train()
    vlm = policy.model.vlm_with_expert.vlm.model
    assert (vlm.text_model.training, vlm.vision_model.training) == (True, False)


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        (
            ("model.actionin_proj.*",),
            r"model.actionin_proj.\* matches no parameter; the nearest are model.action_in_proj",
        ),
        (
            (f"{VLM}lm_head.*",),
            r"lm_head.\* matches only parameters that LeRobot never trains \(first: .*lm_head.weight",
        ),
        (("q_proj", "model.state_proj.bias", "v_proj"), "q_proj matches no parameter.*v_proj matches no parameter"),
        (("state_proj.bias",), "state_proj.bias matches no parameter; the nearest are model.state_proj.bias"),
    ],
)
def test_a_pattern_that_trains_nothing_is_refused(
    built: Callable[..., Any], patterns: Sequence[str], message: str
) -> None:
    with pytest.raises(PolicyError, match=message):
        built(*patterns)


def test_other_policies(built: Callable[..., Any]) -> None:
    everything = trained(built(path="tiny-act"))
    assert trained(built("*", path="tiny-act")) == everything
    assert trained(built("model.action_head.*", path="tiny-act")) == {
        "model.action_head.weight", "model.action_head.bias",
    }  # fmt: skip
    with pytest.raises(PolicyError, match=r"the nearest are model\.action_head\.bias"):
        built("model.actionhead.bias", path="tiny-act")


@pytest.mark.parametrize("patterns", [("*",), (f"{VLM}model.connector.*",), ("model.action_*",)])
def test_sizes_are_those_of_the_policy(built: Callable[..., Any], tmp_path: Path, patterns: tuple[str, ...]) -> None:
    from zk0.policy.save_policy import save_policy

    policy = built(*patterns)
    save_policy(policy, Statistics(state=MOMENTS, action=MOMENTS), tmp_path / "saved")
    found = read_policy_sizes(PolicySettings(path=str(tmp_path / "saved")), patterns)
    numbers = {name: p.numel() for name, p in policy.named_parameters()}
    assert found.trainable == sum(numbers[name] for name in trained(policy))
    assert found.frozen_bytes == 4 * (sum(numbers.values()) - found.trainable)
    assert found.trains_vision is any(n.startswith(VLM) for n in trained(policy))


def test_sizes_of_the_published_policy() -> None:
    """As docs/policies.md lists them: bytes of the global weights, and of what is frozen beside them."""
    tensors = full_policy_tensors()
    sizes = {p: shapes_of_tensors(CONFIG, tensors, p) for p in ((), ("*",), ("model.action_*", "model.state_proj.*"))}
    found = [(one.trainable, one.weight_bytes, one.frozen_bytes) for one in sizes.values()]
    assert found == [
        (99_880_992, 399_523_968, 700_330_368),
        (392_904_096, 1_571_616_384, 228_568_320),
        (1_635_152, 6_540_608, 1_093_313_728),
    ]
    assert sizes[("*",)].trains_text
    assert sizes[("*",)].trains_vision


def faults(path: str, scope: Any, cache: Path, **training: Any) -> list[str]:
    clients = [{"name": n, "dataset": f"lab/{n}"} for n in "ab"]
    values = {"clients": clients, "evaluation": {"datasets": [{"dataset": "lab/c"}]}, "policy": {"path": path}}
    chosen = {"training": {"scope": scope} | training, "cache_dir": str(cache)}
    return policy_config_faults(parse_session(values | chosen, "test"))


@pytest.mark.parametrize("path", ["tiny", "base"])
def test_faults_are_named_before_anything_starts(path: str, shared_cache: Path) -> None:
    cached, nothing = f"{VLM}model.connector.*", "model.stat_proj.bias"
    assert faults(path, ["model.state_proj.*"], shared_cache) == []
    assert faults(path, [cached], shared_cache, features="off") == []
    missing, trained_vlm = faults(path, [nothing, cached], shared_cache)
    assert missing.startswith("training.scope: model.stat_proj.bias matches no parameter; the nearest are model.state_")
    assert trained_vlm == (
        "training.scope trains 1 tensors of the vision-language model (first: "
        f"{VLM}model.connector.modality_projection.proj.weight), whose outputs training.features embeddings caches; "
        'set training.features = "off"'
    )
    assert len(faults("tiny-act", ["nothing"], shared_cache, features="off")) == 1


def test_a_trained_language_model_in_bf16_becomes_fp32(built: Callable[..., Any], tmp_path: Path) -> None:
    """Its layers compute in one type, so also where only one of them is trained."""
    from safetensors.torch import load_file, save_file

    from zk0.policy.save_policy import save_policy

    save_policy(built(), Statistics(state=MOMENTS, action=MOMENTS), tmp_path / "saved")
    file = tmp_path / "saved" / "model.safetensors"
    state = {n: t.to(torch.bfloat16) if n.startswith(VLM) else t for n, t in load_file(file).items()}
    save_file(state, file, {"format": "pt"})
    (config := tmp_path / "saved" / "config.json").write_text(
        json.dumps(json.loads(config.read_text()) | {"train_expert_only": False})
    )
    whole, part = built(path=str(file.parent)), built(f"{VLM}*.layers.0.*.q_proj.weight", path=str(file.parent))
    vlm = {str(p.dtype) for n, p in whole.named_parameters() if n.startswith(VLM)}
    assert (vlm, whole.config.train_expert_only) == ({"torch.bfloat16"}, True)
    assert trained(whole) == trained(built())
    assert {p.dtype for p in part.parameters()} == {torch.float32}
    assert all(torch.equal(p, state[n].float()) for n, p in part.named_parameters())


def test_settings_of_an_earlier_version_are_read() -> None:
    for adapter, scope in (("none", "expert"), ("lora", "lora")):
        assert LocalTrainingSettings.model_validate({"adapter": adapter}) == LocalTrainingSettings(scope=scope)


def test_a_plan_whose_recipe_trains_another_scope_is_refused(plan: Callable[..., Any]) -> None:
    recipe = plan().recipe.model_copy(update={"trained": ("model.state_proj.*",)})
    assert plan({"scope": ["model.state_proj.*"]}, recipe=recipe).recipe == recipe
    for training in ({}, {"scope": "lora"}, {"scope": ["*"]}):
        with pytest.raises(ValueError, match="the recipe trains"):
            plan(training, recipe=recipe)

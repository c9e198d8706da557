"""Loss, gradients and actions from a cached prefix against `policy.forward` and `policy.predict_action_chunk`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from zk0.errors import PolicyError
from zk0.records import Moments, PolicyRecipe, Statistics

RECIPE = PolicyRecipe(path="tiny", cameras=("overhead", "wrist"), joints=6, seed=1)
TASKS = ["Lift.", "Put the red cube onto the blue one.", "Push it."]
MOMENTS = Moments(count=9, mean=(10.0,) * 6, std=(20.0,) * 6, min=(-90.0,) * 6, max=(90.0,) * 6)


@pytest.fixture
def policy(shared_cache: Path) -> Any:
    from zk0.policy.build import build_policy

    return build_policy(RECIPE, shared_cache)


def batch_of(policy: Any, tasks: list[str]) -> dict[str, Any]:
    """A normalized batch with padded chunks, and tasks of several lengths."""
    from zk0.policy.processors import make_processors

    count, chunk = len(tasks), policy.config.chunk_size
    generator = torch.Generator().manual_seed(2)
    cameras = {f"observation.images.{c}": (count, 3, 64, 80) for c in RECIPE.cameras}
    images = {key: torch.rand(shape, generator=generator) for key, shape in cameras.items()}
    state = 40 * torch.randn(count, 6, generator=generator)
    action = 40 * torch.randn(count, chunk, 6, generator=generator)
    padding = torch.arange(chunk)[None] >= torch.tensor([[chunk], [4], [7]])[:count]
    pre, _ = make_processors(policy, Statistics(state=MOMENTS, action=MOMENTS))
    given = {"observation.state": state, "action": action, "action_is_pad": padding, "task": tasks, **images}
    return pre(given)


def noise_and_time(policy: Any, count: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(4)
    shape = (count, policy.config.chunk_size, policy.config.max_action_dim)
    return torch.randn(shape, generator=generator), torch.rand(count, generator=generator)


def gradients(policy: Any) -> dict[str, Tensor]:
    found = {n: p.grad.clone() for n, p in policy.named_parameters() if p.grad is not None}
    policy.zero_grad(set_to_none=True)
    return found


def tokens_of(batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
    return batch["observation.language.tokens"], batch["observation.language.attention_mask"]


def cached_loss(policy: Any, batch: dict[str, Any], noise: Tensor, time: Tensor) -> Tensor:
    from zk0.policy.smolvla.action_expert import flow_matching_losses
    from zk0.policy.smolvla.prefix import embed_frames, encode_prefix

    features = embed_frames(policy, {k: v for k, v in batch.items() if k.startswith("observation.images.")})
    prefix = encode_prefix(policy, features, *tokens_of(batch))
    losses = flow_matching_losses(policy, prefix, batch["observation.state"], batch["action"], noise, time)
    valid = (~batch["action_is_pad"])[:, :, None].expand(-1, -1, 6)
    return losses[:, :, :6][valid].mean()


def relative(found: Tensor, expected: Tensor) -> float:
    found, expected = found.detach().double(), expected.detach().double()
    return float((found - expected).norm() / expected.norm())


def compare(policy: Any, tasks: list[str]) -> tuple[float, float]:
    """Relative difference of the loss, and the largest of one tensor's gradient."""
    batch, (noise, time) = batch_of(policy, tasks), noise_and_time(policy, len(tasks))
    policy.train()
    expected, _ = policy.forward(dict(batch), noise=noise, time=time)
    expected.backward()
    expected_gradients = gradients(policy)
    loss = cached_loss(policy, batch, noise, time)
    loss.backward()
    found = gradients(policy)
    trained = {n for n, p in policy.named_parameters() if p.requires_grad}
    assert found.keys() == expected_gradients.keys() == trained
    return relative(loss, expected), max(relative(found[n], expected_gradients[n]) for n in trained)


@pytest.mark.parametrize("tasks", [["Lift."], TASKS], ids=["one", "language of three lengths"])
def test_loss_and_every_gradient_are_those_of_the_policy(
    policy: Any, tasks: list[str], record_property: Callable[[str, object], None]
) -> None:
    loss, gradient = compare(policy, tasks)
    record_property("relative differences of loss and worst gradient", (loss, gradient))
    assert loss <= 1e-6
    assert gradient <= 2e-6


@pytest.mark.parametrize("every", [0, 1, 2, 3], ids=lambda n: f"self-attention every {n}")
def test_every_pattern_of_attention(shared_cache: Path, every: int, monkeypatch: pytest.MonkeyPatch) -> None:
    import zk0.policy.smolvla.build_smolvla as module
    from zk0.policy.build import build_policy
    from zk0.policy.smolvla.tiny_geometry import tiny_config

    monkeypatch.setattr(module, "tiny_config", lambda: tiny_config() | {"self_attn_every_n_layers": every})
    loss, gradient = compare(build_policy(RECIPE, shared_cache), TASKS)
    assert loss <= 1e-6
    assert gradient <= 2e-6


def test_fewer_expert_layers_than_language_layers(shared_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import zk0.policy.smolvla.build_smolvla as module
    from zk0.policy.build import build_policy
    from zk0.policy.smolvla.tiny_geometry import tiny_config

    monkeypatch.setattr(
        module, "tiny_config", lambda: tiny_config() | {"num_expert_layers": 2, "self_attn_every_n_layers": 0}
    )
    loss, gradient = compare(build_policy(RECIPE, shared_cache), TASKS)
    assert loss <= 1e-6
    assert gradient <= 2e-6


def test_a_bf16_language_model_agrees_to_its_rounding(policy: Any) -> None:
    policy.model.vlm_with_expert.vlm.to(torch.bfloat16)
    loss, gradient = compare(policy, TASKS)
    assert loss <= 2e-3
    assert gradient <= 2e-2


def test_padding_of_language_does_not_matter(policy: Any) -> None:
    """A batch padded to its longest task gives each frame the same loss as the frame alone."""
    together = batch_of(policy, TASKS)
    noise, time = noise_and_time(policy, 3)
    each = []
    for i in range(3):
        length = int(together["observation.language.attention_mask"][i].sum())
        one = {k: v[i : i + 1] for k, v in together.items() if isinstance(v, Tensor) and v.ndim}
        one |= {k: one[k][:, :length] for k in one if ".language." in k}
        each.append(cached_loss(policy, one, noise[i : i + 1], time[i : i + 1]) * (~one["action_is_pad"]).sum())
    counted = (~together["action_is_pad"]).sum()
    assert relative(cached_loss(policy, together, noise, time), torch.stack(each).sum() / counted) <= 1e-6


def test_several_draws_at_once_equal_each_alone(policy: Any) -> None:
    from zk0.policy.smolvla.action_expert import flow_matching_losses
    from zk0.policy.smolvla.prefix import embed_frames, encode_prefix

    batch = batch_of(policy, TASKS)
    features = embed_frames(policy, {k: v for k, v in batch.items() if k.startswith("observation.images.")})
    prefix = encode_prefix(policy, features, *tokens_of(batch))
    drawn = [noise_and_time(policy, 3) for _ in range(4)]
    noise = torch.stack([n * (k + 1) for k, (n, _) in enumerate(drawn)], dim=1)
    time = torch.stack([t / (k + 1) for k, (_, t) in enumerate(drawn)], dim=1)
    given = (policy, prefix, batch["observation.state"], batch["action"])
    together = flow_matching_losses(*given, noise, time)
    assert together.shape == noise.shape
    for k in range(4):
        assert relative(together[:, k], flow_matching_losses(*given, noise[:, k], time[:, k])) <= 1e-6


def test_predicted_chunks_are_those_of_the_policy(policy: Any) -> None:
    from zk0.policy.smolvla.action_expert import predict_chunk
    from zk0.policy.smolvla.prefix import embed_frames, encode_prefix

    batch, (noise, _) = batch_of(policy, TASKS), noise_and_time(policy, 3)
    features = embed_frames(policy, {k: v for k, v in batch.items() if k.startswith("observation.images.")})
    prefix = encode_prefix(policy, features, *tokens_of(batch))
    found = predict_chunk(policy, prefix, batch["observation.state"], noise)
    expected = policy.predict_action_chunk({k: v for k, v in batch.items() if k != "action"}, noise=noise)
    assert found.shape == (3, 10, 6)
    assert relative(found, expected) <= 1e-6


def test_images_are_embedded_in_the_order_of_the_policy(policy: Any) -> None:
    from zk0.policy.smolvla.prefix import embed_frames

    images = {k: v for k, v in batch_of(policy, TASKS).items() if k.startswith("observation.images.")}
    found = embed_frames(policy, images)
    assert torch.equal(found, embed_frames(policy, dict(reversed(images.items()))))
    swapped = dict(zip(images, reversed(list(images.values())), strict=True))
    assert torch.equal(embed_frames(policy, swapped), found.flip(1))
    assert not torch.equal(found, found.flip(1))


class TestCheckPrefixCacheable:
    def test_the_tiny_policy_is_accepted(self, policy: Any) -> None:
        from zk0.policy.smolvla.prefix import check_prefix_cacheable

        check_prefix_cacheable(policy)

    @pytest.mark.parametrize(
        ("setting", "value", "reason"),
        [
            ("add_image_special_tokens", True, "add_image_special_tokens"),
            ("prefix_length", 300, "prefix_length 300"),
            ("attention_mode", "self_attn", "attention_mode self_attn"),
            ("empty_cameras", 1, "empty_cameras"),
        ],
    )
    def test_settings_that_change_the_prefix(self, policy: Any, setting: str, value: Any, reason: str) -> None:
        from zk0.policy.smolvla.prefix import check_prefix_cacheable

        setattr(policy.config, setting, value)
        with pytest.raises(PolicyError, match=rf'{reason}.*training.features = "off"'):
            check_prefix_cacheable(policy)

    def test_a_trained_language_model(self, policy: Any) -> None:
        from zk0.policy.smolvla.prefix import check_prefix_cacheable

        name, parameter = next(
            (n, p) for n, p in policy.named_parameters() if ".vlm.model.text_model.layers.0.self_attn.q_proj" in n
        )
        parameter.requires_grad_(True)
        with pytest.raises(PolicyError, match=f"1 tensors .*{name}"):
            check_prefix_cacheable(policy)

    def test_lora_on_the_language_model(self, policy: Any) -> None:
        """Target modules given as suffixes, such as q_proj, match the frozen model too."""
        from peft import LoraConfig, get_peft_model

        from zk0.policy.smolvla.prefix import check_prefix_cacheable

        adapted = get_peft_model(policy, LoraConfig(r=2, target_modules=["q_proj", "v_proj"]))
        with pytest.raises(PolicyError, match=r"tensors of the vision-language model are trained.*lora"):
            check_prefix_cacheable(adapted.base_model.model)

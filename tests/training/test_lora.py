"""LoRA: trained as peft trains it, averaged as merged deltas."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from zk0.settings.dataset_settings import ClientSettings
from zk0.settings.plans import RoundPlan, SessionTerms
from zk0.settings.training_settings import LocalTrainingSettings
from zk0.training.batches import round_seed
from zk0.weights.digests import load_weights
from zk0.weights.files import open_weights
from zk0.weights.lora_factors import MergedWeights, lora_factor_names, lora_factor_specs, lora_targets

LORA = {"scope": "lora", "lora_rank": 4, "lora_alpha": 32, "local_steps": 3}
EXPERT = r".*lm_expert\.layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)"


@pytest.fixture
def client(recordings: dict[str, Path], terms: SessionTerms, tmp_path: Path, shared_cache: Path) -> Any:
    from zk0.client.client import Client

    return Client(
        ClientSettings(name="a", dataset=f"local:{recordings['a']}"), terms, tmp_path / "scratch", shared_cache
    )


def plain_peft(policy: Any, client: Any, plan: RoundPlan) -> Any:
    """The same round with peft's own model, LeRobot's forward and torch's AdamW; the policy with LoRA."""
    from peft import LoraConfig, get_peft_model

    from zk0.policy.processors import make_processors
    from zk0.policy.smolvla.draws import draw_noise_and_time
    from zk0.training.batches import shuffled_batches
    from zk0.training.decoded_examples import DecodedExamples

    training = plan.training
    torch.manual_seed(round_seed(42, 1, "adapters"))
    config = LoraConfig(r=4, lora_alpha=32, lora_dropout=training.lora_dropout, target_modules=EXPERT)
    lora_policy = get_peft_model(policy, config)
    weights = [p for p in lora_policy.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, 1e-3, training.betas, training.eps, training.weight_decay, fused=True)
    pre, _ = make_processors(policy, plan.statistics)
    examples = DecodedExamples(client.root, (0, 1), policy, pre, {})
    seed = round_seed(42, 1, "a")
    generator = torch.Generator().manual_seed(seed)
    batches = shuffled_batches(examples.frames, 8, generator)
    torch.manual_seed(seed)
    lora_policy.train()
    for step in range(training.local_steps or 0):
        indices = next(batches)
        optimizer.param_groups[0]["lr"] = 5e-7 + (1e-3 - 5e-7) * (1 + np.cos(np.pi * step / 3)) / 2
        optimizer.zero_grad()
        torch.autograd.backward(examples.loss(policy, indices, draw_noise_and_time(len(indices), policy, generator)))
        torch.nn.utils.clip_grad_norm_(weights, 10.0)
        optimizer.step()
    return lora_policy.eval()


def test_a_round_equals_a_round_of_peft(
    client: Any, policy: Any, start: tuple[Path, str], plan: Callable[..., RoundPlan]
) -> None:
    """Factors equal peft's to the bit, with dropout; merged weights equal those that peft merges."""
    round_plan = plan(LORA | {"features": "off"})
    update = client.train(round_plan, start[0])
    found = load_weights(Path(update.path), update.digest)
    lora_policy = plain_peft(policy, client, round_plan)
    expected = {
        n.removeprefix("base_model.model.").replace(".default.", "."): p.detach().numpy()
        for n, p in lora_policy.named_parameters()
        if p.requires_grad
    }
    assert found.keys() == expected.keys()
    assert all(found[n].tobytes() == expected[n].tobytes() for n in found)
    assert all(np.abs(found[n]).max() > 0 for n in found)

    merged = lora_policy.merge_and_unload().state_dict()
    with open_weights(start[0]) as anchor, open_weights(Path(update.path)) as factors:
        source = MergedWeights(anchor, factors, update.lora)
        moved = 0
        for name, spec in anchor.specs.items():
            values = np.empty(spec.size)
            source.read(name, 0, values)
            assert values == pytest.approx(merged[name].numpy().ravel(), abs=2e-7), name
            moved += int(not np.array_equal(values.astype(np.float32), anchor[name].ravel()))
        assert moved == len(lora_targets(anchor.specs)) > 0


def test_a_merged_checkpoint_loads_in_plain_lerobot(
    client: Any, policy: Any, start: tuple[Path, str], plan: Callable[..., RoundPlan], tmp_path: Path
) -> None:
    """Averaged, saved, and loaded by plain LeRobot: the loss equals that of peft's policy."""
    from lerobot_policy_smolvla_bundled import BundledSmolVLAPolicy
    from zk0.aggregation.aggregate import aggregate
    from zk0.policy.processors import make_processors
    from zk0.policy.save_policy import save_policy
    from zk0.policy.smolvla.draws import draw_noise_and_time
    from zk0.policy.trainable import install_weights
    from zk0.training.decoded_examples import DecodedExamples

    round_plan = plan(LORA | {"features": "off"})
    update = client.train(round_plan, start[0])
    mean = aggregate([update], start[0], tmp_path / "mean.safetensors")
    install_weights(policy, load_weights(Path(mean.path), mean.digest))
    save_policy(policy, round_plan.statistics, tmp_path / "saved")
    assert not list((tmp_path / "saved").glob("adapter*"))
    loaded = BundledSmolVLAPolicy.from_pretrained(tmp_path / "saved")
    install_weights(policy, load_weights(start[0]))
    lora_policy = plain_peft(policy, client, round_plan)
    pre, _ = make_processors(policy, round_plan.statistics)
    examples = DecodedExamples(client.root, (0, 1), policy, pre, {})
    drawn = draw_noise_and_time(4, policy, torch.Generator().manual_seed(3))
    with torch.no_grad():
        expected = examples.loss(lora_policy.base_model.model, [0, 5, 9, 20], drawn)
        found = examples.loss(loaded.eval(), [0, 5, 9, 20], drawn)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)


def test_only_factors_are_sent(client: Any, start: tuple[Path, str], plan: Callable[..., RoundPlan]) -> None:
    update = client.train(plan(LORA), start[0])
    with open_weights(start[0]) as anchor, open_weights(Path(update.path)) as sent:
        assert dict(sent.specs) == lora_factor_specs(anchor.specs, 4)
        values = sum(spec.size for spec in sent.specs.values())
        assert values * 4 < update.bytes < values * 4 + 200 * len(sent.specs)
        assert update.bytes < 0.5 * start[0].stat().st_size


def test_lora_is_removed_after_the_round(client: Any, start: tuple[Path, str], plan: Callable[..., RoundPlan]) -> None:
    """Full training after a round with LoRA, in the same process, equals full training before it."""
    round_plan = plan({"local_steps": 2})
    before = client.train(round_plan, start[0])
    Path(before.path).unlink()
    client.train(plan(LORA), start[0])
    again = client.train(round_plan, start[0])
    assert again.digest == before.digest


def test_same_bits_twice_and_other_seeds_in_other_rounds(
    client: Any, start: tuple[Path, str], plan: Callable[..., RoundPlan]
) -> None:
    first = client.train(plan(LORA), start[0])
    Path(first.path).unlink()
    torch.manual_seed(1234)  # as if other code had drawn numbers before
    assert client.train(plan(LORA), start[0]).digest == first.digest
    assert client.train(plan(LORA, round=2), start[0]).digest != first.digest
    assert client.train(plan(LORA | {"lora_dropout": 0.0}), start[0]).digest != first.digest


def test_cached_features_train_the_same_factors(
    client: Any, start: tuple[Path, str], plan: Callable[..., RoundPlan]
) -> None:
    """Without dropout, whose masks would be drawn for tensors in another order."""
    steps = {}
    for features in ("off", "embeddings", "kv"):
        update = client.train(plan(LORA | {"lora_dropout": 0.0, "features": features}), start[0])
        steps[features] = load_weights(Path(update.path))
    for name, expected in steps["off"].items():
        if "lora_B" in name:
            for features in ("embeddings", "kv"):
                assert np.linalg.norm(steps[features][name] - expected) < 1e-3 * np.linalg.norm(expected), name


class TestFullGeometry:
    """Shapes of the action expert of lerobot/smolvla_base: 16 layers, hidden 720, 15 heads of 64, 5 of keys."""

    def test_3_416_064_parameters_and_13_7_mb(self, tmp_path: Path) -> None:
        from zk0.weights.tensor_spec import TensorSpec
        from zk0.weights.writer import save_weights

        specs = {}
        for layer in range(16):
            across = layer % 2 == 1  # every other layer attends to the language model's keys and values (5 x 64)
            width = 320 if across else 720
            shapes = {"q": (960, 720), "k": (320, width), "v": (320, width), "o": (720, 960)}
            module = f"model.vlm_with_expert.lm_expert.layers.{layer}"
            specs |= {f"{module}.self_attn.{k}_proj.weight": TensorSpec("float32", s) for k, s in shapes.items()}
            mlp = {"gate": (2048, 720), "up": (2048, 720), "down": (720, 2048)}
            specs |= {f"{module}.mlp.{k}_proj.weight": TensorSpec("float32", s) for k, s in mlp.items()}
        sent = lora_factor_specs(specs, LocalTrainingSettings().lora_rank)
        assert sum(spec.size for spec in sent.values()) == 3_416_064
        target = tmp_path / "factors.safetensors"
        _, size = save_weights(target, {n: np.zeros(s.shape, s.dtype) for n, s in sent.items()})
        assert size == target.stat().st_size
        assert 3_416_064 * 4 <= size < 13.72e6

    @pytest.mark.slow
    @pytest.mark.timeout(1200)
    def test_the_real_policy_agrees(self, full: Any) -> None:
        from zk0.policy.lora import lora_attached
        from zk0.policy.trainable import trainable_parameters, trainable_weights
        from zk0.weights.tensor_spec import TensorSpec

        specs = {n: TensorSpec.of(w) for n, w in trainable_weights(full).items()}
        training = LocalTrainingSettings(scope="lora")
        with lora_attached(full, training, seed=1):
            assert sum(p.numel() for p in trainable_parameters(full).values()) == 3_416_064
            sent = {n: TensorSpec.of(w) for n, w in trainable_weights(full).items()}
            assert not [n for n in sent if ".vlm." in n]
        assert sent == lora_factor_specs(specs, 16)
        assert sum(p.numel() for p in trainable_parameters(full).values()) == 99_880_992


def test_the_mean_is_that_of_the_products(start: tuple[Path, str], tmp_path: Path) -> None:
    """Three clients with different weights against numpy; the product of mean factors would differ."""
    from zk0.aggregation.aggregate import aggregate
    from zk0.aggregation.verify import verify_update
    from zk0.records import ClientMetrics, LoraShape, Update
    from zk0.weights.writer import save_weights

    rng, rank, alpha, counts = np.random.default_rng(5), 3, 6, {"a": 10, "b": 70, "c": 20}
    with open_weights(start[0]) as anchor:
        specs, before = dict(anchor.specs), dict(anchor)
    metrics = ClientMetrics(
        policy_loss=1, fedprox_loss=0, grad_norm=1, update_norm=1, local_steps=1, lr_first=1, lr_last=1, seconds=1
    )
    sent, updates = {}, []
    for client, count in counts.items():
        sent[client] = {n: rng.normal(0, 0.1, s.shape).astype("f") for n, s in lora_factor_specs(specs, rank).items()}
        path = tmp_path / f"{client}.safetensors"
        digest, size = save_weights(path, sent[client])
        updates.append(
            Update(
                client=client,
                round=1,
                global_digest=start[1],
                path=str(path),
                digest=digest,
                bytes=size,
                examples=count,
                dataset="x",
                metrics=metrics,
                lora=LoraShape(rank=rank, alpha=alpha),
            )
        )
        length = verify_update(updates[-1], round=1, global_digest=start[1], global_path=start[0], already_received=())
        assert isinstance(length, float)
    mean = aggregate(updates, start[0], tmp_path / "mean.safetensors")
    found = load_weights(Path(mean.path), mean.digest)
    assert mean.path.endswith("mean.safetensors")
    assert {n: w.shape for n, w in found.items()} == {n: w.shape for n, w in before.items()}
    square = 0.0
    for name in before:
        step = np.zeros(before[name].shape)
        if name in lora_targets(before):
            a, b = lora_factor_names(name)
            products = {c: sent[c][b].astype(float) @ sent[c][a].astype(float) for c in counts}
            step = sum(alpha / rank * counts[c] / 100 * products[c] for c in counts)
            of_means = sum(counts[c] / 100 * sent[c][b] for c in counts) @ sum(
                counts[c] / 100 * sent[c][a] for c in counts
            )
            assert np.abs(alpha / rank * of_means - step).max() > 0.01
        assert found[name] == pytest.approx(before[name] + step, abs=3e-8, rel=1e-6), name
        square += float((step**2).sum())
    assert mean.param_update_norm == pytest.approx(square**0.5, rel=1e-5)


def test_factors_of_another_shape_are_rejected(
    client: Any, start: tuple[Path, str], plan: Callable[..., RoundPlan]
) -> None:
    from zk0.aggregation.verify import verify_update
    from zk0.records import LoraShape, Refusal

    update = client.train(plan(LORA), start[0])

    def reason(**changes: Any) -> str | None:
        changed = update.model_copy(update=changes)
        found = verify_update(changed, round=1, global_digest=start[1], global_path=start[0], already_received=())
        return found.reason if isinstance(found, Refusal) else None

    assert reason() is None
    assert "first model" in str(reason(lora=LoraShape(rank=5, alpha=32)))
    assert "missing" in str(reason(lora=None))
    assert reason(path=str(start[0]), digest=start[1]) is not None


def test_blocks_of_any_size_give_the_same_numbers(
    client: Any, start: tuple[Path, str], plan: Callable[..., RoundPlan]
) -> None:
    round_plan = plan(LORA | {"lora_dropout": 0.0})
    update = client.train(round_plan, start[0])
    with open_weights(start[0]) as anchor, open_weights(Path(update.path)) as factors:
        source = MergedWeights(anchor, factors, update.lora)
        name = lora_targets(anchor.specs)[0]
        a, b = (factors[n].astype(np.float64) for n in lora_factor_names(name))
        expected = (anchor[name] + 8.0 * (b @ a)).ravel()
        for size in (1, 7, 100, expected.size):
            found = np.empty_like(expected)
            for at in range(0, expected.size, size):
                source.read(name, at, found[at : at + size])
            assert found == pytest.approx(expected, rel=1e-15, abs=1e-18)

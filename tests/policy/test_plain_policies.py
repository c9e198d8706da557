"""Policies other than SmolVLA against LeRobot's own training step, losses, predictions and files."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from zk0.errors import PolicyError
from zk0.policy.plain.plain_kind import frame_seed
from zk0.records import ACTION, CAMERA_PREFIX, STATE, PolicyRecipe, Statistics
from zk0.settings.plans import RoundPlan
from zk0.training.batches import round_seed, shuffled_batches

KEYS = tuple(f"{CAMERA_PREFIX}{camera}" for camera in ("overhead", "wrist"))


def recipe_of(path: str) -> PolicyRecipe:
    if path == "tiny-diffusion":
        pytest.importorskip("diffusers")
    return PolicyRecipe(path=path, cameras=("overhead", "wrist"), joints=6, seed=1)


@pytest.fixture
def act(shared_cache: Path) -> Any:
    from zk0.policy.build import build_policy

    return build_policy(recipe_of("tiny-act"), shared_cache)


@pytest.fixture(params=["tiny-act", "tiny-diffusion"])
def plain(request: pytest.FixtureRequest, shared_cache: Path) -> Any:
    """A policy of each type; the Diffusion Policy with group normalization, which has no buffers."""
    from zk0.policy.build import build_policy

    policy = build_policy(recipe_of(request.param), shared_cache)
    if request.param == "tiny-act":
        return policy
    torch.manual_seed(1)
    return type(policy)(replace(policy.config, use_group_norm=True)).eval()


def lerobot_processors(policy: Any, statistics: Statistics) -> tuple[Any, Any]:
    """LeRobot's processors with the statistics as `lerobot-train` makes them: ImageNet's for images."""
    from lerobot.policies.factory import make_pre_post_processors
    from lerobot.utils.constants import IMAGENET_STATS

    moments = {STATE: statistics.state, ACTION: statistics.action}
    stats = {
        key: {name: np.array(getattr(m, name), np.float32) for name in ("mean", "std", "min", "max")}
        for key, m in moments.items()
    }
    images = {name: np.array(values, np.float32) for name, values in IMAGENET_STATS.items()}
    return make_pre_post_processors(policy.config, dataset_stats=stats | dict.fromkeys(KEYS, images))


def lerobot_dataset(policy: Any, root: Path, episodes: list[int]) -> Any:
    from lerobot.datasets import LeRobotDataset, LeRobotDatasetMetadata
    from lerobot.datasets.factory import resolve_delta_timestamps

    meta = LeRobotDatasetMetadata("local/set", root=root)
    deltas = resolve_delta_timestamps(policy.config, meta)
    return LeRobotDataset("local/set", root=root, episodes=episodes, delta_timestamps=deltas, video_backend="pyav")


class CapturedGradients(torch.optim.SGD):
    """An optimizer that keeps the gradients of its first step, and changes no weight."""

    def step(self, closure: Any = None) -> None:
        self.gradients = [w.grad.clone() for w in self.param_groups[0]["params"]]


def lerobot_step(policy: Any, batch: dict[str, Any], seed: int) -> tuple[float, dict[str, np.ndarray]]:
    """Loss and gradients by name of `lerobot-train`'s own training step."""
    from accelerate import Accelerator
    from lerobot.scripts.lerobot_train import update_policy
    from lerobot.utils.logging_utils import AverageMeter, MetricsTracker

    names = sorted(name for name, p in policy.named_parameters() if p.requires_grad)
    optimizer = CapturedGradients([dict(policy.named_parameters())[name] for name in names], lr=0.0)
    meters = {name: AverageMeter(name) for name in ("loss", "grad_norm", "lr", "update_s")}
    tracker = MetricsTracker(8, 27, 2, meters, initial_step=0)
    torch.manual_seed(seed)
    tracker, _ = update_policy(tracker, policy, batch, optimizer, 1e9, Accelerator(cpu=True))
    return tracker.loss.val, dict(zip(names, (g.numpy() for g in optimizer.gradients), strict=True))


def test_gradients_are_those_of_lerobots_training_step(
    plain: Any, recordings: dict[str, Path], plan: Callable[..., RoundPlan]
) -> None:
    """A whole round of one step: the control variate of a round is its mean raw gradient."""
    from zk0.policy.processors import make_processors
    from zk0.policy.trainable import trainable_parameters
    from zk0.training.control_variate_correction import ControlVariateCorrection
    from zk0.training.decoded_examples import DecodedExamples
    from zk0.training.fit import fit

    chosen = plan({"features": "off", "local_steps": 1, "batch_size": 6}, recipe=recipe_of("tiny-act"))
    assert chosen.statistics is not None
    seed = round_seed(chosen.terms.seed, 1, "a")
    data = lerobot_dataset(plain, recordings["a"], [0, 1])
    indices = next(shuffled_batches(len(data), 6, torch.Generator().manual_seed(seed)))
    pre, _ = lerobot_processors(plain, chosen.statistics)
    batch = pre(torch.utils.data.default_collate([data[i] for i in indices]))
    loss, expected = lerobot_step(plain, batch, seed)

    examples = DecodedExamples(recordings["a"], (0, 1), plain, make_processors(plain, chosen.statistics)[0], {})
    control = ControlVariateCorrection(trainable_parameters(plain), {}, {})
    metrics = fit(plain, examples, chosen, control=control)
    found = control.new_client_control()
    assert metrics.policy_loss == loss
    assert found.keys() == expected.keys()
    assert [name for name in found if not np.array_equal(found[name], expected[name])] == []
    still = {name for name, gradient in found.items() if not gradient.any()}
    assert all(name.startswith("model.decoder.layers.0.") for name in still)  # ACT's first layer attends to zeros
    assert len(still) <= 3


def by_lerobot(
    policy: Any, root: Path, statistics: Statistics, seed: int, times: int
) -> tuple[list[float], list[np.ndarray]]:
    """Of frames 0, 4, 8, ... of two episodes: the loss, and absolute errors in degrees where not padded."""
    pre, post = lerobot_processors(policy, statistics)
    data, losses, errors = lerobot_dataset(policy, root, [0, 1]), [], []
    first = policy.config.action_delta_indices.index(0)
    for item in (data[index] for index in range(len(data)) if int(data[index]["frame_index"]) % 4 == 0):
        draws = frame_seed(seed, int(item["episode_index"]), int(item["frame_index"]))
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(draws)
            losses.append(policy.forward(pre(torch.utils.data.default_collate([item] * times)))[0].item())
            torch.manual_seed(draws)
            policy.reset()
            observed = pre(torch.utils.data.default_collate([item]))
            chunk = post(policy.predict_action_chunk(observed))[0]
        window = slice(first, first + len(chunk))
        real = ~item["action_is_pad"][window].numpy()
        errors.append((chunk - item[ACTION][window]).abs().numpy()[real])
    return losses, errors


def test_scores_are_those_of_plain_lerobot(plain: Any, recordings: dict[str, Path], statistics: Statistics) -> None:
    """A frame's loss is weighted by its actions that are not padding."""
    from zk0.evaluation.scores import score_policy
    from zk0.policy.processors import make_processors
    from zk0.training.decoded_examples import DecodedExamples

    pre, _ = make_processors(plain, statistics)
    root = recordings["c"]
    examples = DecodedExamples(root, (0, 1), plain, pre, {})
    how = {"dataset": "set", "seed": 7, "times": 3, "every_frames": 4}
    score = score_policy(plain, examples, statistics, batch_size=4, **how)
    losses, errors = by_lerobot(plain, root, statistics, 7, 3)
    counts = [len(error) for error in errors]
    assert counts == ([10, 8, 4] if plain.config.type == "act" else [8, 8, 4]) * 2
    assert score.frames == 6
    assert score.policy_loss == pytest.approx(np.average(losses, weights=counts), rel=1e-5)
    assert score.action_error_degrees == pytest.approx(np.concatenate(errors).mean(), rel=1e-4)
    assert score_policy(plain, examples, statistics, batch_size=4, **how) == score
    alone = score_policy(plain, examples, statistics, batch_size=1, **how)
    assert alone.policy_loss == score.policy_loss
    assert alone.action_error_degrees == pytest.approx(score.action_error_degrees, rel=1e-5)


@pytest.fixture(scope="module", params=["tiny-act", "tiny-diffusion"])
def saved(
    request: pytest.FixtureRequest, statistics: Statistics, shared_cache: Path, tmp_path_factory: Any
) -> tuple[Any, Path]:
    """A policy and the folder that it was saved to; the Diffusion Policy with batch normalization."""
    from zk0.policy.build import build_policy
    from zk0.policy.save_policy import save_policy

    policy, folder = build_policy(recipe_of(request.param), shared_cache), tmp_path_factory.mktemp("saved") / "policy"
    save_policy(policy, statistics, folder, image_shapes=dict.fromkeys(KEYS, (64, 64)), executed_steps=5)
    return policy, folder


def predicted(policy: Any, batch: dict[str, Any]) -> torch.Tensor:
    policy.reset()
    torch.manual_seed(3)
    return policy.predict_action_chunk(batch)


class TestSaved:
    def test_plain_lerobot_loads_it(
        self, saved: tuple[Any, Path], recordings: dict[str, Path], statistics: Statistics
    ) -> None:
        from lerobot.configs import PreTrainedConfig
        from lerobot.datasets import LeRobotDatasetMetadata
        from lerobot.policies.factory import make_policy, make_pre_post_processors

        policy, folder = saved
        config = PreTrainedConfig.from_pretrained(folder)
        config.pretrained_path, config.device = folder, "cpu"
        loaded = make_policy(config, LeRobotDatasetMetadata("local/set", root=recordings["a"]))
        pre, post = make_pre_post_processors(config, str(folder))
        assert (config.type, config.n_action_steps) == (policy.config.type, 5)
        assert config.pretrained_backbone_weights is None
        item = lerobot_dataset(policy, recordings["a"], [0])[3]
        own_pre, own_post = lerobot_processors(policy, statistics)
        found = predicted(loaded, pre(torch.utils.data.default_collate([item])))
        expected = predicted(policy, own_pre(torch.utils.data.default_collate([item])))
        assert torch.equal(post(found), own_post(expected)[:, : found.shape[1]])

    def test_it_is_built_again_with_the_same_weights(self, saved: tuple[Any, Path], tmp_path: Path) -> None:
        from zk0.policy.build import build_policy
        from zk0.policy.trainable import frozen_digest

        policy, folder = saved
        again = build_policy(PolicyRecipe(path=str(folder), cameras=("overhead", "wrist"), joints=6, seed=9), tmp_path)
        assert again.state_dict().keys() == policy.state_dict().keys()
        assert all(torch.equal(value, policy.state_dict()[name]) for name, value in again.state_dict().items())
        assert frozen_digest(again) == frozen_digest(policy)

    def test_other_image_statistics_are_refused(self, saved: tuple[Any, Path], tmp_path: Path) -> None:
        from safetensors.numpy import load_file, save_file

        from zk0.policy.build import build_policy

        folder = Path(shutil.copytree(saved[1], tmp_path / "act"))
        (file,) = folder.glob("policy_preprocessor_step_*_normalizer_processor.safetensors")
        arrays = load_file(file)
        save_file(arrays | {f"{KEYS[0]}.mean": np.full((3, 1, 1), 0.5, np.float32)}, file)
        recipe = PolicyRecipe(path=str(folder), cameras=("overhead", "wrist"), joints=6, seed=9)
        with pytest.raises(PolicyError, match=r"normalizes observation.images.overhead with mean \[0.5.*ImageNet"):
            build_policy(recipe, tmp_path)

    def test_a_closed_loop_attempt_depends_on_its_seed_alone(
        self, saved: tuple[Any, Path], recordings: dict[str, Path]
    ) -> None:
        from zk0.policy.kinds import kind_of
        from zk0.policy.saved_policy import load_saved_policy

        loaded = load_saved_policy(str(saved[1]))
        data = lerobot_dataset(saved[0], recordings["a"], [0])
        batch = loaded.preprocessor(torch.utils.data.default_collate([data[0], data[5]]))
        kind = kind_of(loaded.policy)
        draws = kind.rollout_draws(loaded.policy, [torch.Generator().manual_seed(seed) for seed in (1, 2)])
        together = kind.predict(loaded.policy, batch, draws)
        assert together.shape == (2, kind.predicted_actions(loaded.policy), 6)
        alone = kind.predict(loaded.policy, choose(batch, 1), {name: one[1:] for name, one in draws.items()})
        assert torch.allclose(alone[0], together[1], atol=1e-5)
        assert torch.equal(kind.predict(loaded.policy, batch, draws), together)


def choose(batch: dict[str, Any], row: int) -> dict[str, Any]:
    return {k: v[row : row + 1] for k, v in batch.items() if isinstance(v, torch.Tensor | list)}


def faults(folder: Path, changes: Callable[[dict[str, Any]], object], **training: Any) -> list[str]:
    from zk0.policy.config_faults import policy_config_faults
    from zk0.settings.loading import parse_session

    config = json.loads((folder / "config.json").read_text())
    changes(config)
    (folder / "config.json").write_text(json.dumps(config))
    session = {
        "clients": [{"name": name, "dataset": f"sim:lift-{name}"} for name in ("red", "blue")],
        "policy": {"path": str(folder)},
        "evaluation": {"datasets": [{"dataset": "sim:lift-green"}]},
        "training": {"features": "off", **training},
    }
    return policy_config_faults(parse_session(session, "here"))


def test_sizes_of_the_tiny_policies(saved: tuple[Any, Path]) -> None:
    """Of a saved policy they are an upper bound: its file does not tell parameters from buffers."""
    from zk0.policy.policy_shapes import PolicyShapes, read_policy_sizes
    from zk0.policy.trainable import trainable_parameters
    from zk0.settings.training_settings import PolicySettings

    policy, folder = saved
    trained = trainable_parameters(policy)
    frozen = [tensor.nbytes for name, tensor in policy.state_dict().items() if name not in trained]
    found = read_policy_sizes(PolicySettings(path=f"tiny-{policy.config.type}"))
    assert (found.trainable, found.frozen_bytes) == (sum(p.numel() for p in trained.values()), sum(frozen))
    assert not isinstance(found, PolicyShapes)
    of_file = read_policy_sizes(PolicySettings(path=str(folder)))
    assert found.trainable <= of_file.trainable <= 1.01 * found.trainable
    assert (of_file.frozen_bytes, of_file.download_bytes, of_file.feature_bytes(2, "off")) == (0, 0, 0)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((64, 64), r"images of .* 64 x 64 pixels, expected 96 x 96: .* make it with resize_shape or crop_shape"),
        ((96, 64), r"overhead 96 x 96, .*wrist 64 x 64 pixels; a policy of type diffusion needs cameras of one size"),
        ((96, 96), ""),
    ],
)
def test_a_diffusion_policy_that_resizes_no_images(shared_cache: Path, sizes: tuple[int, int], message: str) -> None:
    from zk0.policy.build import build_policy
    from zk0.policy.plain.plain_kind import PlainKind

    built = build_policy(recipe_of("tiny-diffusion"), shared_cache)
    policy = type(built)(replace(built.config, resize_shape=None, crop_shape=None)).eval()
    images = {key: torch.zeros(1, 2, 3, size, size) for key, size in zip(KEYS, sizes, strict=True)}
    batch = {STATE: torch.zeros(1, 2, 6), ACTION: torch.zeros(1, 16, 6), **images}
    batch["action_is_pad"] = torch.zeros(1, 16, dtype=torch.bool)
    if not message:
        assert torch.isfinite(PlainKind().loss(policy, batch, {}))
        return
    for call in (PlainKind().loss, PlainKind().score, PlainKind().predict):
        with pytest.raises(PolicyError, match=message):
            call(policy, batch, PlainKind().evaluation_draws(policy, 1, [(0, 0)], 2))


CONFIG = {
    "type": "act",
    "input_features": {STATE: {"type": "STATE", "shape": [6]}},
    "output_features": {ACTION: {"type": "ACTION", "shape": [6]}},
    "normalization_mapping": {"STATE": "MEAN_STD", "ACTION": "MIN_MAX", "VISUAL": "IDENTITY"},
}


def test_what_a_session_cannot_do_is_named_before_anything_starts(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    assert faults(tmp_path, lambda c: None) == []
    cached, lora = faults(tmp_path, lambda c: None, features="kv", scope="lora")
    assert cached.startswith("training.features kv: ")
    assert cached.endswith('set training.features = "off"')
    assert lora.startswith("training.scope lora: ")
    (size,) = faults(tmp_path, lambda c: c["output_features"][ACTION].update(shape=[7]))
    assert size == "action of shape [7], expected the contract's 6 joints: [6]"
    found = faults(tmp_path, lambda c: c["normalization_mapping"].update(STATE="QUANTILES"))
    assert found[1] == "normalization_mapping STATE QUANTILES, expected MEAN_STD or MIN_MAX"


class TestBuffers:
    def test_a_round_of_a_policy_with_batch_normalization(
        self, recordings: dict[str, Path], plan: Callable[..., RoundPlan], shared_cache: Path
    ) -> None:
        from zk0.policy.build import build_policy
        from zk0.policy.processors import make_processors
        from zk0.training.decoded_examples import DecodedExamples
        from zk0.training.fit import fit

        policy = build_policy(recipe_of("tiny-diffusion"), shared_cache)
        chosen = plan({"features": "off", "local_steps": 2, "batch_size": 4})
        examples = DecodedExamples(recordings["a"], (0, 1), policy, make_processors(policy, chosen.statistics)[0], {})
        weights = {name: one.clone() for name, one in policy.named_parameters()}
        buffers = {name: one.clone() for name, one in policy.named_buffers()}
        assert fit(policy, examples, chosen).update_norm > 0
        assert all(torch.equal(one, buffers[name]) for name, one in policy.named_buffers())
        assert not any(
            torch.equal(one, weights[name]) for name, one in policy.named_parameters() if "bn1.weight" in name
        )

    def test_batch_normalization_keeps_its_moments_and_trains_its_weights(self) -> None:
        from zk0.policy.plain.plain_kind import PlainKind

        norm = torch.nn.BatchNorm2d(3)
        policy = torch.nn.Sequential(norm, torch.nn.Dropout())
        PlainKind().set_training(policy)
        assert policy[1].training
        policy(torch.randn(4, 3, 5, 5) + 7).sum().backward()
        assert torch.equal(norm.running_mean, torch.zeros(3))
        assert norm.weight.grad is not None

    def test_a_buffer_that_changes_ends_the_training(self, act: Any) -> None:
        from zk0.policy.unchanged_buffers import unchanged_buffers

        name = "model.backbone.bn1.running_mean"
        buffer = dict(act.named_buffers())[name]
        before = buffer.clone()
        message = f"changed 1 buffers of a policy of type act .first: {name}"
        with pytest.raises(PolicyError, match=message), unchanged_buffers(act):
            buffer.add_(1)
        assert torch.equal(buffer, before)

"""Local training of a client against plain training with LeRobot and torch."""

from collections.abc import Callable, Iterator
from math import cos, pi
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from zk0.errors import UpdateError
from zk0.records import Statistics
from zk0.settings.dataset_settings import ClientSettings
from zk0.settings.plans import RoundPlan, SessionTerms
from zk0.settings.training_settings import SchedulerSettings
from zk0.training.batches import count_steps, round_seed, shuffled_batches
from zk0.training.fit import fit

FRAMES = 27
"""Training frames of client a: its first two episodes."""


@pytest.fixture
def client(recordings: dict[str, Path], terms: SessionTerms, tmp_path: Path, shared_cache: Path) -> Any:
    from zk0.client.client import Client

    settings = ClientSettings(name="a", dataset=f"local:{recordings['a']}")
    return Client(settings, terms, tmp_path / "scratch", shared_cache)


def plain_training(
    policy: Any, root: Path, statistics: Statistics, seed: int, rates: list[float], mu: float
) -> list[float]:
    """Train the policy in place with LeRobotDataset, LeRobot's processors, policy.forward and AdamW; the losses."""
    from lerobot.datasets import LeRobotDataset
    from lerobot.policies.factory import make_pre_post_processors

    chunk, width, batch_size = policy.config.chunk_size, policy.config.max_action_dim, 8
    deltas = {"action": [i / 10 for i in range(chunk)]}
    data = LeRobotDataset("local/a", root=root, episodes=[0, 1], delta_timestamps=deltas, video_backend="pyav")
    moments = {"observation.state": statistics.state, "action": statistics.action}
    stats = {
        k: {n: np.array(getattr(m, n), np.float32) for n in ("mean", "std", "min", "max")} for k, m in moments.items()
    }
    pre, _ = make_pre_post_processors(policy.config, dataset_stats=stats)
    weights = [p for _, p in sorted(policy.named_parameters()) if p.requires_grad]
    anchor = [w.detach().clone() for w in weights]
    optimizer = torch.optim.AdamW(weights, lr=1.0, betas=(0.9, 0.95), eps=1e-8, weight_decay=1e-10, fused=True)
    generator = torch.Generator().manual_seed(seed)
    order: list[int] = []
    losses = []
    policy.train()
    for rate in rates:
        if not order:
            order = torch.randperm(len(data), generator=generator).tolist()
        chosen, order = order[:batch_size], order[batch_size:]
        noise = torch.randn(len(chosen), chunk, width, generator=generator)
        time = torch.rand(len(chosen), generator=generator) ** (1 / 1.5) * 0.999 + 0.001
        batch = pre(torch.utils.data.default_collate([data[i] for i in chosen]))
        loss, _ = policy.forward(batch, noise=noise, time=time)
        losses.append(loss.item())
        if mu:
            loss = loss + mu / 2 * sum(((w - a) ** 2).sum() for w, a in zip(weights, anchor, strict=True))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 10.0)
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
    return losses


def cosine(lr: float, steps: int, floor: float = 5e-7) -> list[float]:
    return [floor + (lr - floor) * (1 + cos(pi * step / steps)) / 2 for step in range(steps)]


def arrays(policy: Any) -> dict[str, np.ndarray]:
    return {n: p.detach().numpy().copy() for n, p in policy.named_parameters() if p.requires_grad}


class TestOneClientIsPlainTraining:
    """With mu = 0, no cached features and more steps than one pass: equal to the bit on the CPU."""

    def test_to_the_bit_and_through_the_average(
        self, client: Any, policy: Any, recordings: dict, start: tuple, plan: Callable[..., RoundPlan], tmp_path: Path
    ) -> None:
        from zk0.aggregation.aggregate import aggregate
        from zk0.aggregation.verify import verify_update
        from zk0.weights.digests import load_weights

        rates: list[float] = []
        round_plan = plan({"features": "off", "local_steps": 6})
        update = client.train(round_plan, start[0], lambda step, steps, loss, lr: rates.append(lr))
        assert rates == pytest.approx(cosine(1e-3, 6), rel=1e-12)
        seed = round_seed(42, 1, "a")
        losses = plain_training(policy, recordings["a"], round_plan.statistics, seed, rates, mu=0.0)

        expected, trained = arrays(policy), load_weights(Path(update.path), update.digest)
        assert expected.keys() == trained.keys()
        assert all(expected[n].tobytes() == trained[n].tobytes() for n in expected)
        assert update.metrics.policy_loss == sum(losses) / 6
        assert update.examples == FRAMES

        length = verify_update(update, round=1, global_digest=start[1], global_path=start[0], already_received=())
        assert length == pytest.approx(update.metrics.update_norm, rel=1e-6)
        mean = aggregate([update], start[0], tmp_path / "mean.safetensors")
        averaged = load_weights(Path(mean.path), mean.digest)
        assert all(expected[n].tobytes() == averaged[n].tobytes() for n in expected)
        before = load_weights(start[0])
        moved = sum(float(((expected[n].astype(float) - before[n]) ** 2).sum()) for n in expected) ** 0.5
        assert moved > 0.05
        assert mean.param_update_norm == pytest.approx(moved, rel=1e-6)
        assert update.metrics.update_norm == pytest.approx(moved, rel=1e-6)

    def test_with_the_vision_language_model(
        self, client: Any, recordings: dict, plan: Callable[..., RoundPlan], shared_cache: Path, tmp_path: Path
    ) -> None:
        """Full fine-tuning, scope `all`: to the bit as LeRobot's training of an unfrozen policy."""
        from zk0.policy.build import build_policy
        from zk0.policy.trainable import trainable_weights
        from zk0.weights.digests import load_weights
        from zk0.weights.writer import save_weights

        recipe = plan().recipe.model_copy(update={"trained": ("*",)})
        policy = build_policy(recipe, shared_cache)
        start = tmp_path / "start.safetensors"
        digest, _ = save_weights(start, trainable_weights(policy))
        training = {"scope": "all", "features": "off", "local_steps": 3}
        round_plan = plan(training, recipe=recipe, global_digest=digest)
        update = client.train(round_plan, start)
        frozen = {n: p.clone() for n, p in policy.named_parameters() if not p.requires_grad}
        plain_training(policy, recordings["a"], round_plan.statistics, round_seed(42, 1, "a"), cosine(1e-3, 3), mu=0.0)
        expected, found, before = arrays(policy), load_weights(Path(update.path), update.digest), load_weights(start)
        assert expected.keys() == found.keys()
        assert all(expected[n].tobytes() == found[n].tobytes() for n in expected)
        assert all((before[n] != found[n]).any() for n in found)
        assert all(torch.equal(p, frozen[n]) for n, p in policy.named_parameters() if n in frozen)
        assert client.train(plan(training, recipe=recipe, global_digest=digest, mu=0.1), start).digest != update.digest

    def test_with_the_proximal_term(
        self, client: Any, policy: Any, recordings: dict, start: tuple, plan: Callable[..., RoundPlan]
    ) -> None:
        """Against autograd of the whole loss; not to the bit, because sums are rounded in another order."""
        round_plan = plan({"features": "off", "local_steps": 5}, mu=2.0)
        update = client.train(round_plan, start[0])
        plain_training(policy, recordings["a"], round_plan.statistics, round_seed(42, 1, "a"), cosine(1e-3, 5), mu=2.0)
        from zk0.weights.digests import load_weights

        expected, trained, before = arrays(policy), load_weights(Path(update.path)), load_weights(start[0])
        step = np.concatenate([(expected[n] - before[n]).ravel() for n in sorted(expected)])
        found = np.concatenate([(trained[n] - before[n]).ravel() for n in sorted(expected)])
        free = client.train(plan({"features": "off", "local_steps": 5}), start[0])
        without = np.concatenate([(load_weights(Path(free.path))[n] - before[n]).ravel() for n in sorted(expected)])
        assert np.linalg.norm(found - step) < 2e-3 * np.linalg.norm(step)
        assert np.linalg.norm(without - step) > 0.05 * np.linalg.norm(step)
        assert update.metrics.fedprox_loss == pytest.approx(2.0 / 2 * np.linalg.norm(step.astype(float)) ** 2, rel=5e-3)
        assert free.metrics.fedprox_loss == 0.0

    def test_cached_features_train_the_same_weights(
        self, client: Any, start: tuple, plan: Callable[..., RoundPlan]
    ) -> None:
        from zk0.weights.digests import load_weights

        before = load_weights(start[0])
        steps = []
        for features in ("off", "embeddings", "kv"):
            update = client.train(plan({"features": features, "local_steps": 5}), start[0])
            steps.append({n: v - before[n] for n, v in load_weights(Path(update.path)).items()})
        length = sum(float((steps[0][n] ** 2).sum()) for n in before) ** 0.5
        for cached in steps[1:]:
            difference = sum(float(((steps[0][n] - cached[n]) ** 2).sum()) for n in before) ** 0.5
            assert difference < 1e-2 * length


class TestLearningRate:
    @pytest.mark.parametrize("kind", ["cosine", "cosine_warm_restarts", "reduce_on_plateau"])
    def test_the_optimizer_uses_the_scheduled_learning_rate(
        self, client: Any, start: tuple, plan: Callable[..., RoundPlan], kind: str
    ) -> None:
        """AdamW's first step changes a weight by lr * g / (|g| + eps): by lr unless the gradient is tiny."""
        from zk0.records import RoundDecision
        from zk0.rules.round_decision import client_lr
        from zk0.weights.digests import load_weights

        decision = RoundDecision(round=1, lr=3e-4, mu=0.0, client_lr_factors={"a": 1.15}, reason="")
        round_plan = plan({"local_steps": 1}, {"type": kind}, lr=client_lr(decision, "a"))
        update = client.train(round_plan, start[0])
        before, after = load_weights(start[0]), load_weights(Path(update.path))
        moved = np.concatenate([np.abs(after[n].astype(float) - before[n]).ravel() for n in before])
        assert np.quantile(moved, 0.9) == pytest.approx(3.45e-4, rel=1e-3)
        assert moved.max() < 3.46e-4
        assert update.metrics.lr_first == update.metrics.lr_last == pytest.approx(3.45e-4)

    def test_a_boosted_learning_rate_reaches_the_metrics(
        self, client: Any, start: tuple, plan: Callable[..., RoundPlan]
    ) -> None:
        from zk0.records import Checkpoint, ClientMetrics, RoundRecord, Update
        from zk0.rules.round_decision import client_lr, decide_round
        from zk0.settings.loading import parse_session

        clients = [{"name": n, "dataset": "local:x"} for n in "abc"]
        session = parse_session(
            {"clients": clients, "evaluation": {"datasets": [{"dataset": "local:y"}]}, "training": {"lr": 2e-4}}
            | {"scheduler": {"adaptive_lr_enabled": True, "type": "cosine"}},
            "here",
        )
        rest = {"fedprox_loss": 0.0, "grad_norm": 1.0, "update_norm": 1.0, "local_steps": 1, "lr_first": 1.0}
        metrics = {
            n: ClientMetrics(policy_loss=loss, lr_last=1.0, seconds=1.0, **rest)
            for n, loss in zip("abc", (9, 1, 1), strict=True)
        }
        files = {"round": 1, "global_digest": "", "path": "", "digest": "", "bytes": 1, "examples": 1, "dataset": ""}
        updates = tuple(Update(client=n, metrics=m, **files) for n, m in metrics.items())
        checkpoint = Checkpoint(round=1, path="", digest="", bytes=1)
        history = [RoundRecord(round=1, checkpoint=checkpoint, updates=updates, seconds=1.0, finished_at="")]
        decision = decide_round(session, history)
        round_plan = plan(
            {"local_steps": 3}, lr=client_lr(decision, "a"), round=2, scheduler=session.scheduler.model_dump()
        )
        update = client.train(round_plan, start[0])
        assert update.metrics.lr_first == pytest.approx(2e-4 * 1.15)
        assert update.metrics.lr_last == pytest.approx(cosine(2e-4 * 1.15, 3)[2])
        assert client_lr(decision, "b") == pytest.approx(2e-4)


class TestSteps:
    @pytest.mark.parametrize(
        ("settings", "steps"),
        [
            ({"local_steps": 3}, 3),
            ({"local_steps": None, "local_epochs": 2}, 8),
            ({"local_steps": None, "local_epochs": 1}, 4),
        ],
    )
    def test_steps_and_epochs(
        self, client: Any, start: tuple, plan: Callable[..., RoundPlan], settings: dict, steps: int
    ) -> None:
        progress: list[tuple[int, int]] = []
        update = client.train(plan(settings), start[0], lambda step, of, loss, lr: progress.append((step, of)))
        assert progress == [(step, steps) for step in range(1, steps + 1)]
        assert update.metrics.local_steps == steps

    @pytest.mark.parametrize(("frames", "batch", "epochs"), [(27, 8, 1), (24, 8, 3), (5, 8, 2), (1, 1, 4)])
    def test_an_epoch_sees_every_frame_once(self, frames: int, batch: int, epochs: int) -> None:
        batches = shuffled_batches(frames, batch, torch.Generator().manual_seed(0))
        orders = []
        for _ in range(epochs):
            order = [i for _ in range(count_steps(frames, batch, None, 1)) for i in next(batches)]
            assert sorted(order) == list(range(frames))
            orders.append(tuple(order))
        assert frames < 5 or len(set(orders)) == epochs

    def test_seeds_differ_by_session_round_and_client(self) -> None:
        seeds = {round_seed(s, r, c) for s in (1, 42) for r in (1, 2, 11) for c in ("a", "b", "1/a")}
        assert len(seeds) == 18
        assert all(0 <= seed < 2**63 for seed in seeds)

    def test_the_same_plan_gives_the_same_bits(
        self, client: Any, start: tuple, plan: Callable[..., RoundPlan], tmp_path: Path
    ) -> None:
        from dataclasses import replace

        first = client.train(plan(), start[0])
        other = replace(client, scratch=tmp_path / "elsewhere").train(plan(), start[0])
        assert first.digest == other.digest
        assert first.path != other.path
        assert client.train(plan(round=2), start[0]).digest != first.digest


class TestDeterministic:
    @pytest.mark.parametrize("enabled", [True, False])
    def test_the_setting_holds_during_the_steps_only(
        self, client: Any, start: tuple, plan: Callable[..., RoundPlan], enabled: bool
    ) -> None:
        states = []
        client.train(
            plan({"deterministic": enabled}),
            start[0],
            lambda *_: states.append(torch.are_deterministic_algorithms_enabled()),
        )
        assert states == [enabled] * 4
        assert not torch.are_deterministic_algorithms_enabled()

    @pytest.mark.gpu
    @pytest.mark.parametrize("features", ["off", "embeddings", "kv"])
    def test_the_same_bits_on_a_gpu(
        self, client: Any, start: tuple, plan: Callable[..., RoundPlan], features: str
    ) -> None:
        round_plan = plan({"deterministic": True, "device": "cuda", "features": features, "amp": True})
        first = client.train(round_plan, start[0])
        Path(first.path).unlink()
        assert client.train(round_plan, start[0]).digest == first.digest


class TestNotFinite:
    def test_an_infinite_loss_is_an_error_that_names_client_and_step(
        self, client: Any, start: tuple, plan: Callable[..., RoundPlan]
    ) -> None:
        with pytest.raises(UpdateError, match=r"a: round 1, step [1-9]\d*: loss .*lower training.lr"):
            client.train(plan({"local_steps": 20}, {"type": "reduce_on_plateau"}, lr=1e19), start[0])
        assert not list((client.scratch).rglob("*.safetensors"))

    def test_the_next_round_is_not_affected(self, client: Any, start: tuple, plan: Callable[..., RoundPlan]) -> None:
        expected = client.train(plan(), start[0]).digest
        with pytest.raises(UpdateError):
            client.train(plan({"local_steps": 20}, {"type": "reduce_on_plateau"}, lr=1e19), start[0])
        for file in client.scratch.glob("sessions/*/updates/*"):
            file.unlink()
        assert client.train(plan(), start[0]).digest == expected


def test_mixed_precision_agrees_to_bf16(policy: Any, client: Any, start: tuple, plan: Callable[..., RoundPlan]) -> None:
    """With bf16 autocast losses agree to three digits, and trained weights stay fp32."""
    plain = client.train(plan({"local_steps": 3}), start[0])
    mixed = client.train(plan({"local_steps": 3, "amp": True}), start[0])
    assert mixed.digest != plain.digest
    assert mixed.metrics.policy_loss == pytest.approx(plain.metrics.policy_loss, rel=2e-2)
    from zk0.weights.digests import load_weights

    assert {v.dtype for v in load_weights(Path(mixed.path)).values()} == {np.dtype(np.float32)}


def test_the_schedule_is_the_plans(policy: Any, client: Any, plan: Callable[..., RoundPlan]) -> None:
    examples = client.training_examples(plan(), policy)
    metrics = fit(policy, examples, plan({"local_steps": 4}, {"eta_min": 1e-4}))
    assert metrics.lr_first == 1e-3
    assert metrics.lr_last == pytest.approx(cosine(1e-3, 4, 1e-4)[3])
    assert SchedulerSettings().eta_min == 5e-7


class TestPieces:
    @pytest.mark.parametrize("features", ["off", "kv"])
    @pytest.mark.parametrize("pieces", [2, 3, 8, 100])
    def test_a_batch_in_pieces_has_the_gradient_of_the_whole(
        self, policy: Any, client: Any, plan: Callable[..., RoundPlan], features: str, pieces: int
    ) -> None:
        """Frames at an episode's end count fewer actions, so the mean of the pieces' means would be wrong."""
        from zk0.policy.smolvla.draws import draw_noise_and_time
        from zk0.training.batches import Batch
        from zk0.training.local_optimizer import LocalOptimizer

        examples = client.training_examples(plan({"features": features}), policy)
        optimizer = LocalOptimizer(policy, examples, plan({"features": features}), None)
        indices = [11, 10, 0, 26, 25, 24, 5, 23]
        batch = Batch(indices, draw_noise_and_time(8, policy, torch.Generator().manual_seed(1)))
        found = []
        for count in (1, pieces):
            policy.zero_grad(set_to_none=True)
            loss = optimizer._accumulate_gradient(batch, count)
            found.append((loss, torch.cat([w.grad.flatten().double() for w in optimizer.weights])))
        (whole, gradient), (loss, summed) = found
        assert loss == pytest.approx(whole, rel=1e-6)
        assert float((summed - gradient).norm() / gradient.norm()) <= 1e-6

    def test_accumulated_steps_train_the_same_round(
        self, client: Any, start: tuple, plan: Callable[..., RoundPlan]
    ) -> None:
        whole, pieces = (
            client.train(plan({"accumulate_steps": count}), start[0]).metrics.model_copy(update={"seconds": 0.0})
            for count in (1, 3)
        )
        assert pieces.policy_loss == pytest.approx(whole.policy_loss, rel=1e-5)
        assert pieces.grad_norm == pytest.approx(whole.grad_norm, rel=1e-4)
        assert (pieces.local_steps, pieces.lr_last) == (whole.local_steps, whole.lr_last)


class _LargeExamples:
    """A client's frames, each of which takes so many bytes more, which are not written."""

    frames = 16
    action_counts = np.full(16, 10)

    def __init__(self, examples: Any, frame_bytes: int = 10**9) -> None:
        self._examples = examples
        self._values = frame_bytes // 4

    def loss(self, policy: Any, indices: Any, draws: Any) -> torch.Tensor:
        block = torch.empty(len(indices), self._values)
        block[0, 0] = 0
        return self._examples.loss(policy, indices, draws) + block[0, 0]


class TestOutOfMemory:
    """A limit on this process's address space makes a real allocation fail.

    The sizes are far apart: what earlier tests left may be freed at any time, and makes room for some hundred MB.
    """

    @pytest.fixture
    def limit_memory(self) -> Iterator[Callable[[int], None]]:
        import gc
        import resource

        before = resource.getrlimit(resource.RLIMIT_AS)

        def limit(more: int) -> None:
            gc.collect()
            used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + more, before[1]))

        yield limit
        resource.setrlimit(resource.RLIMIT_AS, before)

    def test_the_error_names_a_batch_that_fits(
        self, policy: Any, client: Any, plan: Callable[..., RoundPlan], limit_memory: Callable[[int], None]
    ) -> None:
        large = _LargeExamples(client.training_examples(plan(), policy))
        settings = {"local_steps": 1, "batch_size": 16}
        limit_memory(6 * 10**9)
        message = (
            r"a: round 1, step 0: out of memory with 16 frames at once \(.*can't allocate memory.*\); 4 fit: "
            r"set training.accumulate_steps = 4 \(same result, in pieces\), or training.batch_size = 4$"
        )
        with pytest.raises(UpdateError, match=message):
            fit(policy, large, plan(settings))
        metrics = fit(policy, large, plan(settings | {"accumulate_steps": 4}))
        assert metrics.policy_loss > 0

    def test_not_even_one(
        self, policy: Any, client: Any, plan: Callable[..., RoundPlan], limit_memory: Callable[[int], None]
    ) -> None:
        large = _LargeExamples(client.training_examples(plan(), policy), 40 * 10**9)
        limit_memory(10**9)
        with pytest.raises(UpdateError, match="not even 1 fits: free memory"):
            fit(policy, large, plan({"local_steps": 1}))

    def test_the_fewest_parts_that_fit_are_found_once(
        self,
        policy: Any,
        client: Any,
        start: tuple,
        plan: Callable[..., RoundPlan],
        limit_memory: Callable[[int], None],
    ) -> None:
        """16 frames of 1 GB each in 6 GB: as with 4 parts, and the second training tries nothing."""
        from zk0.policy.trainable import install_weights
        from zk0.weights.digests import load_weights

        class Counting(_LargeExamples):
            sizes: list[int]

            def loss(self, policy: Any, indices: Any, draws: Any) -> torch.Tensor:
                self.sizes.append(len(indices))
                return super().loss(policy, indices, draws)

        large, found = Counting(client.training_examples(plan(), policy)), []
        weights = load_weights(start[0])
        limit_memory(6 * 10**9)
        for parts in (0, 0, 4):
            install_weights(policy, weights)
            large.sizes = []
            metrics = fit(policy, large, plan({"local_steps": 2, "batch_size": 16, "accumulate_steps": parts}))
            found.append((metrics.model_copy(update={"seconds": 0.0}), large.sizes))
        assert [sizes for _, sizes in found] == [[16, 8, 4] + [4] * 8, [4] * 8, [4] * 8]
        assert found[0][0] == found[1][0] == found[2][0]

    @pytest.mark.parametrize("scope", ["expert", "lora"])
    def test_looking_for_parts_changes_no_number(
        self, client: Any, start: tuple, plan: Callable[..., RoundPlan], scope: str
    ) -> None:
        """LoRA's dropout draws random numbers while the memory is tried, too."""
        whole, found = (client.train(plan({"scope": scope, "accumulate_steps": n}), start[0]) for n in (1, 0))
        assert found.digest == whole.digest

    def test_looking_for_parts_when_not_even_one_fits(
        self, policy: Any, client: Any, plan: Callable[..., RoundPlan], limit_memory: Callable[[int], None]
    ) -> None:
        large = _LargeExamples(client.training_examples(plan(), policy), 40 * 10**9)
        limit_memory(10**9)
        with pytest.raises(UpdateError, match=r"a: round 1, before step 0: .*not even 1 fits: free memory"):
            fit(policy, large, plan({"local_steps": 1, "accumulate_steps": 0, "batch_size": 4}))

    def test_other_errors_are_not_out_of_memory(self, policy: Any, plan: Callable[..., RoundPlan]) -> None:
        class Wrong(_LargeExamples):
            def loss(self, policy: Any, indices: Any, draws: Any) -> torch.Tensor:
                return torch.ones(2, 3) @ torch.ones(2, 3)

        with pytest.raises(RuntimeError, match="cannot be multiplied"):
            fit(policy, Wrong(None), plan())

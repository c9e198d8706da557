"""Batches that are brought to the device ahead of the steps: the same numbers, no wait in a step, few copies.

No GPU is needed: torch's fake tensors say which operations copy between a CPU and a GPU or wait for it.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from zk0.errors import UpdateError
from zk0.settings.plans import RoundPlan
from zk0.training.batches import draw_batches, shuffled_batches
from zk0.training.fit import fit
from zk0.training.local_optimizer import LocalOptimizer
from zk0.training.staging import CopyPlan, staged_ahead

AHEAD = CopyPlan("cpu", pinned=False, batches_ahead=2, steps_unread=3)
"""As on a GPU, but the copies are from the CPU to the CPU."""
WAITS = ("aten._local_scalar_dense", "aten.nonzero", "aten.equal", "aten.is_nonzero", "aten.masked_select")
"""Operations whose result the CPU needs: it waits for everything that a GPU was asked for before."""


class Operations(TorchDispatchMode):
    """Records the names of all operations, and those that get tensors of several devices or copy to another one."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.between_devices: list[tuple[str, int]] = []
        """Name, and bytes of the result."""

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = operation(*args, **(kwargs or {}))
        name = str(operation).removesuffix(".default")
        self.names.append(name)
        tensors = [t for t in tree_leaves((args, kwargs, result)) if isinstance(t, torch.Tensor)]
        if len({t.device.type for t in tensors}) > 1:
            self.between_devices.append((name, tensors[-1].nbytes))
        return result

    def waits(self) -> list[str]:
        return [name for name in self.names if name.startswith(WAITS)]


@pytest.fixture
def examples(recordings: dict[str, Path], terms: Any, tmp_path: Path, shared_cache: Path) -> Callable[..., Any]:
    """Makes the training frames of client a, 27 in two episodes."""
    from zk0.client.client import Client
    from zk0.settings.dataset_settings import ClientSettings

    settings = ClientSettings(name="a", dataset=f"local:{recordings['a']}")
    return Client(settings, terms, tmp_path / "scratch", shared_cache).training_examples


def trained(policy: Any, start: tuple[Path, str], train: Callable[[], Any]) -> tuple[Any, dict[str, bytes]]:
    """What `train` returns, and the bits of the weights that it trains from the start weights."""
    from zk0.policy.trainable import install_weights
    from zk0.weights.digests import load_weights

    install_weights(policy, load_weights(start[0]))
    metrics = train().model_copy(update={"seconds": 0.0})
    weights = {n: p.detach().cpu().numpy().tobytes() for n, p in policy.named_parameters() if p.requires_grad}
    return metrics, weights


class TestTheSameNumbers:
    @pytest.mark.parametrize("features", ["off", "embeddings", "kv"])
    @pytest.mark.parametrize("pieces", [1, 3])
    def test_batches_ahead_and_losses_read_later_change_nothing(
        self, policy: Any, examples: Any, start: tuple, plan: Callable[..., RoundPlan], features: str, pieces: int
    ) -> None:
        chosen = plan({"features": features, "local_steps": 6, "accumulate_steps": pieces}, mu=0.5)
        frames = examples(chosen, policy)
        found = []
        for copies in (None, AHEAD):
            calls: list[tuple] = []
            run = trained(
                policy, start, lambda c=copies, k=calls: fit(policy, frames, chosen, lambda *a: k.append(a), copies=c)
            )
            found.append((*run, calls))
        assert found[0] == found[1]
        assert [call[:2] for call in found[0][2]] == [(step, 6) for step in range(1, 7)]

    def test_an_infinite_loss_that_is_read_later_names_its_step(
        self, policy: Any, examples: Any, start: tuple, plan: Callable[..., RoundPlan]
    ) -> None:
        chosen = plan({"local_steps": 20}, {"type": "reduce_on_plateau"}, lr=1e19)
        frames, messages = examples(chosen, policy), []
        for copies in (None, AHEAD):
            with pytest.raises(UpdateError) as raised:
                trained(policy, start, lambda c=copies: fit(policy, frames, chosen, copies=c))
            messages.append(str(raised.value))
        assert messages[0] == messages[1]
        assert "step 1: loss" in messages[0]


class TestCompiled:
    def test_layers_that_torch_captures_give_the_same_bits(
        self,
        policy: Any,
        examples: Any,
        start: tuple,
        plan: Callable[..., RoundPlan],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """Batches of 8 and 3 frames with tasks of several lengths, and LoRA; captured, but not fused."""
        from torch._dynamo.utils import counters

        from zk0.training import compilation
        from zk0.training.cached_policy import planned_adapter

        monkeypatch.setattr(compilation, "BACKEND", "eager")
        counters.clear()
        for changes in ({"local_steps": 4}, {"local_steps": 1, "scope": "lora"}):
            found = []
            for chosen in (plan({**changes, "compile": compiled, "features": "kv"}) for compiled in (False, True)):

                def train(chosen: RoundPlan = chosen, frames: Any = examples(chosen, policy)) -> Any:  # noqa: B008
                    with planned_adapter(policy, chosen):
                        return fit(policy, frames, chosen)

                found.append(trained(policy, start, train))
            assert found[0] == found[1]
        assert 2 <= counters["stats"]["unique_graphs"] <= 8
        assert not counters["graph_break"]

    def test_measuring_a_gradient_changes_no_weight(
        self, policy: Any, examples: Any, plan: Callable[..., RoundPlan], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As on a GPU, but nothing is captured: both ways are the same, and the decision is made once."""
        from zk0.training import compilation, local_optimizer

        measured = []
        monkeypatch.setattr(compilation, "_can_compile", lambda _: True)
        monkeypatch.setattr(compilation, "BACKEND", None)
        monkeypatch.setattr(local_optimizer, "_backends_found", {})
        chosen = plan({"features": "kv", "accumulate_steps": 2})
        optimizer = LocalOptimizer(policy, examples(chosen, policy), chosen, None)
        before = [w.detach().clone() for w in optimizer.weights]
        measure = optimizer._gradient_seconds
        monkeypatch.setattr(optimizer, "_gradient_seconds", lambda b: measured.append(measure(b)) or measured[-1])
        assert [optimizer.find_backend(200) for _ in range(2)] == [None, None]
        assert len(measured) == 2
        assert all(0 < seconds < 60 for seconds in measured)
        assert all(torch.equal(w, old) and w.grad is None for w, old in zip(optimizer.weights, before, strict=True))


class TestStagedAhead:
    @pytest.mark.parametrize("ahead", [0, 1, 2, 9])
    def test_order_and_number(self, ahead: int) -> None:
        drawn = []

        def items() -> Iterator[int]:
            for number in range(6):
                drawn.append(number)
                yield number

        found = []
        for item, staged in staged_ahead(items(), lambda n: (n * n, threading.current_thread()), ahead):
            assert len(drawn) == min(6, item + 1 + ahead)
            found.append(staged())
        assert [square for square, _ in found] == [0, 1, 4, 9, 16, 25]
        assert ({thread for _, thread in found} == {threading.current_thread()}) == (ahead == 0)
        assert len({thread for _, thread in found}) == 1

    @pytest.mark.parametrize("ahead", [0, 1])
    def test_an_error_is_that_of_its_item(self, ahead: int) -> None:
        def stage(number: int) -> float:
            return 1 / (2 - number)

        staged = staged_ahead(iter(range(4)), stage, ahead)
        assert [next(staged)[1]() for _ in range(2)] == [0.5, 1.0]
        with pytest.raises(ZeroDivisionError):
            next(staged)[1]()
        staged.close()
        assert not [t for t in threading.enumerate() if t.name.startswith("zk0-stage")]


class TestNoWait:
    @pytest.mark.parametrize("features", ["embeddings", "kv"])
    def test_a_step_reads_no_number(
        self, policy: Any, examples: Any, plan: Callable[..., RoundPlan], features: str
    ) -> None:
        """Staging, gradient in pieces, proximal term, clipping and AdamW: the CPU never needs a result."""
        chosen = plan({"features": features, "accumulate_steps": 2}, mu=0.5)
        optimizer = LocalOptimizer(policy, examples(chosen, policy), chosen, None, AHEAD)
        generator = torch.Generator().manual_seed(1)
        drawn = draw_batches(shuffled_batches(27, 8, generator), 2, policy, generator)
        pieces = (piece for batch in drawn for piece in optimizer.pieces(batch))
        staged = staged_ahead(pieces, optimizer.stage, 0)
        with Operations() as seen:
            results = [optimizer.step(staged, 1e-3, "here") for _ in range(2)]
        assert len(seen.names) > 1000
        assert seen.waits() == []
        losses = [result.read()[0] for result in results]
        assert all(0 < loss < 10 for loss in losses)

    def test_the_list_of_waits_is_not_empty(self) -> None:
        with Operations() as seen:
            float(torch.ones(3).sum())
            bool((torch.ones(3) > 0).any())
        assert seen.waits() == ["aten._local_scalar_dense"] * 2


class TestCopies:
    @pytest.mark.parametrize("features", ["embeddings", "kv"])
    def test_a_batch_is_copied_in_eight_parts(
        self, policy: Any, examples: Any, plan: Callable[..., RoundPlan], features: str
    ) -> None:
        """8 frames: a chunk of 10, 32 padded joints, two cameras, and at most 19 tokens of a task."""
        chosen = plan({"features": features})
        frames = examples(chosen, policy)
        to_nowhere = CopyPlan("meta", pinned=False, batches_ahead=0, steps_unread=0)
        optimizer = LocalOptimizer(policy, frames, chosen, None, to_nowhere)
        batch = next(draw_batches(iter([list(range(8))]), 1, policy, torch.Generator()))
        (piece,) = optimizer.pieces(batch)
        with Operations() as seen:
            parts = optimizer.stage(piece).ready()
        copied = {name: part for name, part in parts.items() if isinstance(part, torch.Tensor)}
        assert {name: tuple(part.shape) for name, part in copied.items()} == {
            "features": {"embeddings": (8, 2, 9, 64), "kv": (8, 4, 2, 2 * 9 + 19, 2, 16)}[features],
            "tokens": (8, 19),
            "token_mask": (8, 19),
            "states": (8, 6),
            "actions": (8, 10, 6),
            "padding": (8, 10),
            "drawn.noise": (8, 10, 32),
            "drawn.time": (8,),
        }
        assert {part.device.type for part in copied.values()} == {"meta"}
        assert seen.between_devices == [("aten._to_copy", part.nbytes) for part in copied.values()]
        assert seen.waits() == []

    @pytest.mark.parametrize("features", ["embeddings", "kv"])
    def test_the_loss_on_a_gpu_copies_nothing(
        self, policy: Any, examples: Any, plan: Callable[..., RoundPlan], features: str
    ) -> None:
        """Frozen layers, action expert and loss on a GPU that exists in torch's bookkeeping only."""
        frames = examples(plan({"features": features}), policy)
        host = frames.stage([0, 5, 26], CopyPlan("cpu", pinned=False, batches_ahead=0, steps_unread=0))
        with FakeTensorMode(), torch.no_grad():
            move_to_fake_gpu(policy)
            parts = {n: fake_gpu(v) if isinstance(v, torch.Tensor) else v for n, v in host.items()}
            draws = {"noise": torch.empty(3, 10, 32, device="cuda"), "time": torch.empty(3, device="cuda")}
            with Operations() as seen:
                loss = frames.staged_loss(policy, parts, draws)
        assert loss.device.type == "cuda"
        assert loss.shape == ()
        assert len(seen.names) > 300
        assert [copy for copy in seen.between_devices if copy[1]] == []  # copies of 0 bytes do not wait
        assert seen.waits() == []


@pytest.mark.gpu
class TestOnAGpu:
    def test_compiled_layers_agree_up_to_rounding(
        self, recipe: Any, examples: Any, start: tuple, plan: Callable[..., RoundPlan], shared_cache: Path
    ) -> None:
        from zk0.policy.build import build_policy

        policy = build_policy(recipe, shared_cache, "cuda")
        settings = {"local_steps": 4, "device": "cuda", "amp": False, "features": "kv"}
        found = []
        for compiled in (False, True):
            chosen = plan({**settings, "compile": compiled})
            frames = examples(chosen, policy)
            found.append(trained(policy, start, lambda c=chosen, f=frames: fit(policy, f, c))[0])
        assert found[1].policy_loss == pytest.approx(found[0].policy_loss, rel=1e-3)
        assert found[1].grad_norm == pytest.approx(found[0].grad_norm, rel=1e-2)

    @pytest.mark.parametrize("features", ["embeddings", "kv"])
    def test_pinned_batches_of_a_thread_give_the_same_bits_and_no_step_waits(
        self,
        recipe: Any,
        examples: Any,
        start: tuple,
        plan: Callable[..., RoundPlan],
        features: str,
        shared_cache: Path,
    ) -> None:
        from zk0.policy.build import build_policy

        chosen = plan({"features": features, "local_steps": 6, "deterministic": True, "device": "cuda"}, mu=0.5)
        policy = build_policy(recipe, shared_cache, "cuda")
        frames = examples(chosen, policy)
        at_once = CopyPlan("cuda", pinned=False, batches_ahead=0, steps_unread=0)
        plain, staged = (
            trained(policy, start, lambda c=copies: fit(policy, frames, chosen, copies=c)) for copies in (at_once, None)
        )
        assert staged == plain
        optimizer = LocalOptimizer(policy, frames, chosen, None)
        generator = torch.Generator().manual_seed(1)
        drawn = draw_batches(shuffled_batches(27, 8, generator), 4, policy, generator)
        pieces = (piece for batch in drawn for piece in optimizer.pieces(batch))
        with closing(staged_ahead(pieces, optimizer.stage, 1)) as waiting:
            optimizer.step(waiting, 1e-3, "warm-up")
            torch.cuda.set_sync_debug_mode("error")
            try:
                for _ in range(3):
                    optimizer.step(waiting, 1e-3, "here")
            finally:
                torch.cuda.set_sync_debug_mode("default")


def fake_gpu(tensor: torch.Tensor) -> torch.Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, device="cuda")


def move_to_fake_gpu(policy: Any) -> None:
    policy.config.device = "cuda"
    for module in policy.modules():
        for name, weight in module._parameters.items():
            if weight is not None:
                module._parameters[name] = torch.nn.Parameter(fake_gpu(weight), requires_grad=False)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = fake_gpu(buffer)

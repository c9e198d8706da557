"""SCAFFOLD against a numpy reference on a linear problem, and through a real client."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from zk0.aggregation.aggregate import aggregate
from zk0.aggregation.reduction_plan import AggregationTerms
from zk0.aggregation.verify import verify_update
from zk0.client.start_weights import open_start_weights
from zk0.client.update_outbox import TrainedUpdate, UpdateOutbox
from zk0.errors import UpdateError
from zk0.records import ClientMetrics, PolicyRecipe, Refusal, Update, WireFormat
from zk0.settings.aggregation_settings import AggregationSettings
from zk0.settings.dataset_settings import ClientSettings, ContractSettings, DataSettings, SimulatorSettings
from zk0.settings.plans import RoundPlan, SessionTerms
from zk0.settings.training_settings import LocalTrainingSettings, SchedulerSettings
from zk0.training.control_variate_correction import ControlVariateCorrection, server_control, without_control
from zk0.weights.control_variates import CONTROL_PREFIX, save_with_control_variates
from zk0.weights.digests import digest, load_weights
from zk0.weights.files import open_weights
from zk0.weights.writer import save_weights

METRICS = ClientMetrics(
    policy_loss=1, fedprox_loss=0, grad_norm=1, update_norm=1, local_steps=1, lr_first=1, lr_last=1, seconds=1
)
CLIENTS, STEPS, LR, ROUNDS = ("a", "b", "c"), 8, 0.02, 30


class Quadratic:
    """The loss of one client, 1/2 |A w - b|^2; each client has another optimum."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.a = rng.normal(size=(6, 4)) * rng.uniform(0.3, 2.0, 4)
        self.b = self.a @ rng.normal(size=4) * 3

    def gradient(self, w: np.ndarray) -> np.ndarray:
        return self.a.T @ (self.a @ w - self.b)


PROBLEMS = {name: Quadratic(seed) for seed, name in enumerate(CLIENTS)}


def optimum() -> np.ndarray:
    """The weights where the mean of the clients' gradients is zero."""
    left = sum(p.a.T @ p.a for p in PROBLEMS.values())
    return np.linalg.solve(left, sum(p.a.T @ p.b for p in PROBLEMS.values()))


def reference(participants: list[tuple[str, ...]]) -> tuple[np.ndarray, np.ndarray]:
    """Algorithm 1 with option II, in numpy: the server's weights and its control variate."""
    x, c = np.zeros(4), np.zeros(4)
    own = {name: np.zeros(4) for name in CLIENTS}
    for names in participants:
        steps, changes = [], []
        for name in names:
            y = x.copy()
            for _ in range(STEPS):
                y = y - LR * (PROBLEMS[name].gradient(y) - own[name] + c)
            new = own[name] - c + (x - y) / (STEPS * LR)
            steps.append(y - x)
            changes.append(new - own[name])
            own[name] = new
        x = x + np.mean(steps, axis=0)
        c = c + len(names) / len(CLIENTS) * np.mean(changes, axis=0)
    return x, c


class Linear:
    """The same with zk0's plans, outboxes and files, as in a session; the optimizer is plain SGD."""

    def __init__(self, folder: Path, session_terms: SessionTerms) -> None:
        self.folder, self.terms = folder, session_terms
        self.weights = folder / "round-000" / "weights.safetensors"
        save_weights(self.weights, {"w": np.zeros(4, np.float32)})
        self.state: dict[str, Path] = {}
        self.round = 0

    def plan(self, name: str, sent: Path) -> RoundPlan:
        with open_weights(self.weights) as weights, open_weights(sent) as file:
            wire = WireFormat()
            if sent != self.weights:
                wire = WireFormat(download="with_control_variates", download_digest=digest(file))
            return RoundPlan(
                terms=self.terms,
                round=self.round,
                client=name,
                recipe=PolicyRecipe(path="tiny", cameras=("x",), joints=6, seed=1),
                global_digest=digest(weights),
                statistics=None,
                lr=LR,
                mu=0.0,
                training=LocalTrainingSettings(),
                scheduler=SchedulerSettings(),
                wire=wire,
                use_control_variates=True,
            )

    def train(self, name: str, sent: Path) -> Update:
        plan, outbox = self.plan(name, sent), UpdateOutbox(self.folder / name, "d")
        with open_start_weights(plan, sent) as start:
            w = torch.from_numpy(without_control(start)["w"]).requires_grad_()
            control = ControlVariateCorrection({"w": w}, server_control(start), outbox.client_control(plan))
        for _ in range(STEPS):
            w.grad = torch.from_numpy(PROBLEMS[name].gradient(w.detach().numpy().astype(float)).astype(np.float32))
            control.correct([w.grad])
            with torch.no_grad():
                w -= LR * w.grad
        return outbox.store(
            plan, TrainedUpdate({"w": w.detach().numpy()}, 1, METRICS, control.new_client_control()), sent
        )

    def run_round(self, names: tuple[str, ...]) -> None:
        self.round += 1
        sent = self.weights
        if "control" in self.state:
            sent = self.folder / "sent.safetensors"
            save_with_control_variates(self.weights, self.state["control"], sent)
        updates = [self.train(name, sent) for name in names]
        terms = AggregationTerms(AggregationSettings(strategy="scaffold"), self.round, self.state, clients=len(CLIENTS))
        target = self.folder / f"round-{self.round:03d}" / "weights.safetensors"
        mean = aggregate(updates, self.weights, target, terms)
        self.weights, self.state = target, {one.slot: Path(one.path) for one in mean.server_state}


@pytest.fixture
def session_terms() -> SessionTerms:
    return SessionTerms(
        session="s", seed=1, contract=ContractSettings(), data=DataSettings(), simulator=SimulatorSettings()
    )


@pytest.mark.parametrize("all_clients", [True, False])
def test_weights_and_control_are_those_of_the_paper(tmp_path: Path, session_terms: SessionTerms, all_clients: bool):
    rounds = [CLIENTS if all_clients else tuple(sorted({CLIENTS[n % 3], CLIENTS[(n + 1) % 3]})) for n in range(ROUNDS)]
    linear = Linear(tmp_path, session_terms)
    for names in rounds:
        linear.run_round(names)
    x, c = reference(rounds)
    np.testing.assert_allclose(load_weights(linear.weights)["w"], x, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(load_weights(linear.state["control"])["w"], c, rtol=1e-3, atol=2e-3)


def test_it_finds_the_optimum_that_averaging_misses(tmp_path: Path, session_terms: SessionTerms):
    x = np.zeros(4)
    for _ in range(10 * ROUNDS):
        ends = []
        for name in CLIENTS:
            y = x.copy()
            for _ in range(STEPS):
                y = y - LR * PROBLEMS[name].gradient(y)
            ends.append(y)
        x = np.mean(ends, axis=0)
    linear = Linear(tmp_path, session_terms)
    for _ in range(2 * ROUNDS):
        linear.run_round(CLIENTS)
    found = load_weights(linear.weights)["w"]
    assert np.linalg.norm(x - optimum()) > 0.1
    assert np.linalg.norm(found - optimum()) < 0.1 * np.linalg.norm(x - optimum())


def test_an_update_without_complete_control_variates_is_rejected(tmp_path: Path, session_terms: SessionTerms):
    linear = Linear(tmp_path, session_terms)
    linear.round = 1
    update = linear.train("a", linear.weights)
    expected = {
        "round": 1,
        "global_digest": update.global_digest,
        "global_path": linear.weights,
        "already_received": (),
    }
    step = load_weights(Path(update.path))["w"] - load_weights(linear.weights)["w"]
    assert verify_update(update, **expected) == pytest.approx(np.linalg.norm(step))
    for tensors, reason in [
        ({"w": np.zeros(4, np.float32)}, "not weights with their control variates; first: control:w"),
        ({"w": np.zeros(4, np.float32), CONTROL_PREFIX + "w": np.zeros(3, np.float32)}, "of another shape"),
        ({"w": np.zeros(4, np.float32), CONTROL_PREFIX + "w": np.full(4, np.nan, np.float32)}, "holds nan"),
    ]:
        found, size = save_weights(Path(update.path), tensors)
        refusal = verify_update(update.model_copy(update={"digest": found, "bytes": size}), **expected)
        assert isinstance(refusal, Refusal)
        assert reason in refusal.reason
    found, _ = save_weights(Path(update.path), {"w": np.zeros(4, np.float32)})
    with pytest.raises(UpdateError, match="not weights with their control variates"):
        aggregate(
            [update], linear.weights, tmp_path / "new", AggregationTerms(AggregationSettings(strategy="scaffold"), 1)
        )


# ── through a real client ─────────────────────────────────────────────────────


@pytest.fixture
def client(recordings: dict[str, Path], terms: SessionTerms, tmp_path: Path, shared_cache: Path) -> Any:
    from zk0.client.client import Client

    settings = ClientSettings(name="a", dataset=f"local:{recordings['a']}")
    return Client(settings, terms, tmp_path / "scratch", shared_cache)


def test_a_clients_control_is_its_mean_gradient_and_corrects_the_next_round(
    client: Any, start: tuple[Path, str], plan: Callable[..., RoundPlan], tmp_path: Path
) -> None:
    plain = client.train(plan({"local_steps": 1}), start[0])
    first = client.train(plan({"local_steps": 1}, use_control_variates=True), start[0])
    weights, found = load_weights(Path(plain.path)), load_weights(Path(first.path))
    assert all(found[n].tobytes() == weights[n].tobytes() for n in weights)  # the first round has no correction
    gradient = {n: found[CONTROL_PREFIX + n] for n in weights}
    norm = np.sqrt(sum(float((g.astype(float) ** 2).sum()) for g in gradient.values()))
    assert norm == pytest.approx(first.metrics.grad_norm, rel=1e-5)

    server = {n: gradient[n] + np.float32(1000.0) for n in weights}  # c - c_i is 1000 everywhere
    save_weights(tmp_path / "control.safetensors", server)
    sent = tmp_path / "sent.safetensors"
    save_with_control_variates(start[0], tmp_path / "control.safetensors", sent)
    with open_weights(sent) as file:
        wire = WireFormat(download="with_control_variates", download_digest=digest(file))
    second = client.train(plan({"local_steps": 1}, round=2, use_control_variates=True, wire=wire), sent)
    old, new = load_weights(start[0]), load_weights(Path(second.path))
    for name in weights:
        np.testing.assert_allclose(new[name] - old[name], -1e-3, rtol=0.02)  # AdamW's first step is lr against it
        assert np.abs(new[CONTROL_PREFIX + name]).max() < 100  # raw gradients, without the correction

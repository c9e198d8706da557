"""Every strategy over three rounds, beside Flower's own; and by hand where a formula is short."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Message, Metadata, MetricRecord, RecordDict
from flwr.serverapp import strategy as theirs
from hypothesis import HealthCheck, given
from hypothesis import settings as examples_of
from hypothesis import strategies as st
from pydantic import ValidationError

from zk0.aggregation.aggregate import Aggregate, aggregate
from zk0.aggregation.server_step import USUAL_RATES
from zk0.aggregation.strategy import Terms
from zk0.control import CONTROL
from zk0.errors import UpdateError
from zk0.records import Update
from zk0.session import AggregationSettings, parse_session
from zk0.weights import load_weights, save_weights

SHAPES = {"a.weight": (60, 70), "b.bias": (7,), "scalar": ()}
EXAMPLES = (300, 20, 111, 5, 64, 90, 17)
Weights = dict[str, np.ndarray]


def near(weights: Weights, rng: np.random.Generator, scale: float) -> Weights:
    return {n: np.asarray(w + rng.normal(0, scale, w.shape), np.float32) for n, w in weights.items()}


def start() -> Weights:
    return near({n: np.zeros(shape) for n, shape in SHAPES.items()}, np.random.default_rng(0), 1.0)


def clients_of(round_number: int, weights: Weights) -> list[Weights]:
    """Seven clients near the weights; the last two far off."""
    rng = np.random.default_rng(round_number)
    return [near(weights, rng, scale) for scale in (0.02, 0.03, 0.01, 0.02, 0.025, 0.5, 2.0)]


def flower_round(strategy: Any, round_number: int, old: Weights, clients: list[Weights]) -> Weights:
    """What Flower's strategy makes of the clients."""
    of_arrays = isinstance(strategy, theirs.FedAdam | theirs.FedYogi)
    strategy.current_arrays = old if of_arrays else ArrayRecord({n: Array(w) for n, w in old.items()})
    replies = []
    for weights, examples in zip(clients, EXAMPLES, strict=True):
        content = RecordDict(
            {
                "arrays": ArrayRecord({n: Array(w.copy()) for n, w in weights.items()}),
                "metrics": MetricRecord({"num-examples": examples}),
            }
        )
        replies.append(
            Message(content=content, metadata=Metadata(1, "id", 1, 0, "", str(round_number), 0.0, 60.0, "train"))
        )
    arrays, _ = strategy.aggregate_train(round_number, replies)
    return {n: array.numpy() for n, array in arrays.items()}


def our_round(
    saved: Callable[..., Update], folder: Path, round_number: int, clients: list[Weights], terms: Terms
) -> Aggregate:
    updates = [
        saved(f"c{i}", weights, n, round_number) for i, (weights, n) in enumerate(zip(clients, EXAMPLES, strict=True))
    ]
    before, after = (folder / f"round-{n}" / "weights.safetensors" for n in (round_number - 1, round_number))
    return aggregate(updates, before, after, terms)


OPT = {"beta_1": 0.8, "beta_2": 0.95, "tau": 0.1}


@pytest.mark.parametrize(
    ("strategy", "settings", "their_name", "their_settings"),
    [
        ("fedavg", {}, "FedAvg", {}),
        ("fedavgm", {}, "FedAvgM", {"server_momentum": 0.9}),
        (
            "fedavgm",
            {"momentum": 0.5, "server_lr": 0.3},
            "FedAvgM",
            {"server_momentum": 0.5, "server_learning_rate": 0.3},
        ),
        ("fedadam", {}, "FedAdam", {}),
        ("fedadam", OPT | {"server_lr": 1.0}, "FedAdam", OPT | {"eta": 1.0}),
        ("fedyogi", {}, "FedYogi", {}),
        ("fedyogi", OPT | {"server_lr": 1.0}, "FedYogi", OPT | {"eta": 1.0}),
        ("median", {}, "FedMedian", {}),
        ("trimmed_mean", {}, "FedTrimmedAvg", {"beta": 0.2}),
        ("trimmed_mean", {"trim_fraction": 0.3}, "FedTrimmedAvg", {"beta": 0.3}),
        ("krum", {"malicious": 2}, "Krum", {"num_malicious_nodes": 2}),
        (
            "multi_krum",
            {"malicious": 2, "selected": 4},
            "MultiKrum",
            {"num_malicious_nodes": 2, "num_nodes_to_select": 4},
        ),
    ],
)
def test_three_rounds_are_those_of_flower(tmp_path, saved, strategy, settings, their_name, their_settings):
    flower = getattr(theirs, their_name)(**their_settings)
    new = start()
    save_weights(tmp_path / "round-0" / "weights.safetensors", new)
    state: dict[str, Path] = {}
    for round_number in (1, 2, 3):
        clients = clients_of(round_number, new)
        expected = flower_round(flower, round_number, new, clients)
        terms = Terms(AggregationSettings(strategy=strategy, **settings), round_number, state)
        made = our_round(saved, tmp_path, round_number, clients, terms)
        state = {one.slot: Path(one.path) for one in made.server_state}
        new = load_weights(Path(made.path), made.digest)
        for name in SHAPES:
            np.testing.assert_allclose(new[name], expected[name], rtol=2e-5, atol=2e-6)


def test_krum_takes_one_clients_weights_and_says_whose(tmp_path, saved):
    save_weights(tmp_path / "round-0" / "weights.safetensors", start())
    clients = clients_of(1, start())
    made = our_round(saved, tmp_path, 1, clients, Terms(AggregationSettings(strategy="krum", malicious=2)))
    (chosen,) = [c for c in made.contributions if c.weight]
    assert chosen.weight == 1.0
    assert chosen.client in ("c0", "c1", "c2", "c3", "c4")  # not those that are far off
    new = load_weights(Path(made.path))
    assert all(new[n].tobytes() == clients[int(chosen.client[1])][n].tobytes() for n in SHAPES)
    flat = np.array([np.concatenate([w[n].ravel() for n in SHAPES]) for w in clients], np.float64)
    squares = ((flat[:, None] - flat[None]) ** 2).sum(axis=2)
    scores = [np.sort(row)[1:4].sum() for row in squares]  # the 7 - 2 - 2 closest others
    assert chosen.client == f"c{int(np.argmin(scores))}"


def test_multi_krum_leaves_malicious_and_two_more_out_unless_told(tmp_path, saved):
    save_weights(tmp_path / "round-0" / "weights.safetensors", start())
    settings = AggregationSettings(strategy="multi_krum", malicious=2)
    made = our_round(saved, tmp_path, 1, clients_of(1, start()), Terms(settings))
    assert len([c for c in made.contributions if c.weight]) == 3
    assert sum(c.weight for c in made.contributions) == pytest.approx(1.0)


def test_state_goes_on_from_its_file_and_nothing_else(tmp_path, saved):
    """Momentum after two rounds by hand, from clients that stand still the second time."""
    settings = AggregationSettings(strategy="fedavgm", momentum=0.5)
    save_weights(tmp_path / "round-0" / "weights.safetensors", {"w": np.array([1, 2], np.float32)})
    first = aggregate(
        [saved("a", {"w": np.array([2, 0], np.float32)})],
        tmp_path / "round-0" / "weights.safetensors",
        tmp_path / "round-1" / "weights.safetensors",
        Terms(settings, 1),
    )
    (state,) = first.server_state
    assert state.slot == "momentum"
    np.testing.assert_array_equal(load_weights(Path(state.path), state.digest)["w"], [-1, 2])
    np.testing.assert_array_equal(load_weights(Path(first.path))["w"], [2, 0])
    second = aggregate(
        [saved("a", load_weights(Path(first.path)), 1, 2)],
        Path(first.path),
        tmp_path / "round-2" / "weights.safetensors",
        Terms(settings, 2, {"momentum": Path(state.path)}),
    )
    np.testing.assert_array_equal(load_weights(Path(second.path))["w"], [2.5, -1])


def test_too_few_updates_for_a_strategy_are_told(tmp_path, saved):
    save_weights(tmp_path / "round-0" / "weights.safetensors", start())
    updates = [saved(f"c{i}", start()) for i in range(4)]
    with pytest.raises(UpdateError, match="4 updates, expected at least 5 for krum"):
        aggregate(
            updates,
            tmp_path / "round-0" / "weights.safetensors",
            tmp_path / "new",
            Terms(AggregationSettings(strategy="krum", malicious=1)),
        )
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("settings", "min_updates", "words"),
    [
        ({"strategy": "krum"}, 2, "krum needs 3 updates in every round"),
        ({"strategy": "krum", "malicious": 1}, 4, "krum needs 5 updates"),
        ({"strategy": "multi_krum", "selected": 6}, 5, "multi_krum needs 6 updates"),
        ({"strategy": "trimmed_mean"}, 4, "trimmed_mean needs 5 updates"),
        ({"quarantine_factor": 0.5}, 2, "would refuse the median"),
    ],
)
def test_session_refuses_what_cannot_be(settings, min_updates, words):
    values = {
        "clients": [{"name": f"c{i}", "dataset": "sim:lift_cube"} for i in range(8)],
        "evaluation": {"datasets": [{"dataset": "sim:lift_cube"}]},
        "federation": {"min_updates": min_updates},
        "aggregation": settings,
    }
    with pytest.raises(Exception, match=words) as caught:
        parse_session(values, "here")
    assert not isinstance(caught.value, ValidationError)
    values["federation"] = {"min_updates": 8}
    if "quarantine_factor" not in settings:
        parse_session(values, "here")


def test_server_learning_rates_are_those_of_flower():
    flower = {"fedadam": theirs.FedAdam().eta, "fedyogi": theirs.FedYogi().eta}
    assert flower | {"fedavgm": theirs.FedAvgM().server_learning_rate, "scaffold": 1.0} == USUAL_RATES


INSIDE = {
    "fedavg": {},
    "median": {},
    "trimmed_mean": {"trim_fraction": 0.34},
    "krum": {},
    "multi_krum": {"selected": 2},
}


@pytest.mark.parametrize("strategy", INSIDE)
@examples_of(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_order_changes_no_bit_and_every_weight_lies_among_the_clients(tmp_path, saved, strategy, data):
    clients = data.draw(st.integers(3, 6))
    numbers = st.floats(-(2.0**46), 2.0**46, width=32) | st.sampled_from([0.0, -0.0, 1e-45, 3.0])
    values = data.draw(st.lists(st.lists(numbers, min_size=5, max_size=5), min_size=clients, max_size=clients))
    examples = data.draw(st.lists(st.integers(1, 10**6), min_size=clients, max_size=clients))
    save_weights(tmp_path / "global", {"w": np.zeros(5, np.float32)})
    updates = [
        saved(f"c{i}", {"w": np.array(row, np.float32)}, n)
        for i, (row, n) in enumerate(zip(values, examples, strict=True))
    ]
    terms = Terms(AggregationSettings(strategy=strategy, **INSIDE[strategy]))
    first = aggregate(updates, tmp_path / "global", tmp_path / "new", terms)
    again = aggregate(data.draw(st.permutations(updates)), tmp_path / "global", tmp_path / "new", terms, threads=2)
    assert again == first
    new, stacked = load_weights(tmp_path / "new")["w"], np.array(values, np.float32)
    assert (new >= stacked.min(axis=0)).all()
    assert (new <= stacked.max(axis=0)).all()


STATEFUL = {
    "fedavgm": {"server_lr": 0.5},
    "fedadam": {},
    "fedyogi": {"clip_norm": 0.5},
    "scaffold": {},
}


@pytest.mark.parametrize("strategy", STATEFUL)
@examples_of(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_order_changes_no_bit_of_the_servers_state(tmp_path, saved, strategy, data):
    """Two rounds, the second from the state of the first, in any order of arrival on one thread and on two."""
    order = data.draw(st.permutations(range(4)))
    scales = data.draw(st.lists(st.sampled_from([1e-6, 0.01, 1.0, 1e5]), min_size=4, max_size=4))
    settings = AggregationSettings(strategy=strategy, **STATEFUL[strategy])
    found = []
    for name, numbers, threads in (("in order", range(4), 1), ("shuffled", order, 2)):
        before, state = tmp_path / name / "round-0.safetensors", {}
        save_weights(before, start())
        for number in (1, 2):
            rng = np.random.default_rng(number)
            weights = [near(start(), rng, scale) for scale in scales]
            if strategy == "scaffold":
                weights = [one | {CONTROL + n: near({n: w}, rng, 0.1)[n] for n, w in one.items()} for one in weights]
            updates = [saved(f"c{i}", one, EXAMPLES[i], number) for i, one in enumerate(weights)]
            updates = [u.model_copy(update={"control": strategy == "scaffold"}) for u in updates]
            target = tmp_path / name / f"{number}" / "weights.safetensors"
            made = aggregate([updates[i] for i in numbers], before, target, Terms(settings, number, state, 5), threads)
            before, state = target, {one.slot: Path(one.path) for one in made.server_state}
            assert sum(one.weight for one in made.contributions) == pytest.approx(1, abs=1e-15)
            assert len(state) == {"fedavgm": 1, "fedadam": 2, "fedyogi": 2, "scaffold": 1}[strategy]
            found.append((made.digest, made.contributions, [one.digest for one in made.server_state]))
    assert found[:2] == found[2:]
    assert found[0] != found[1]

"""What holds for every aggregation strategy of the catalog; each one's own tests are in strategies/."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as examples_of
from hypothesis import strategies as st
from strategy_rounds import EXAMPLES, initial_weights, perturbed

from zk0.aggregation.aggregate import aggregate
from zk0.aggregation.check_strategy import check_strategy
from zk0.aggregation.reduction_plan import AggregationTerms
from zk0.aggregation.strategies import STRATEGIES
from zk0.aggregation.strategy import Strategy
from zk0.errors import SettingsError
from zk0.settings.aggregation_settings import AggregationSettings
from zk0.settings.loading import parse_session
from zk0.settings.session import Session
from zk0.weights.control_variates import CONTROL_PREFIX
from zk0.weights.digests import load_weights
from zk0.weights.writer import save_weights

ROOT = Path(__file__).parents[2]
SETTINGS = {"trim_fraction": 0.34, "selected": 2}
"""Settings with which every strategy takes three updates or more."""


def session_with(aggregation: dict[str, object], min_updates: int = 8, **changes: object) -> Session:
    values = {
        "clients": [{"name": f"c{i}", "dataset": "sim:lift_cube"} for i in range(8)],
        "evaluation": {"datasets": [{"dataset": "sim:lift_cube"}]},
        "aggregation": aggregation,
        **changes,
    }
    values["federation"] = {"min_updates": min_updates, **values.get("federation", {})}
    return parse_session(values, "here")


# ── the catalog ───────────────────────────────────────────────────────────────


def test_every_module_holds_the_strategy_of_its_name_and_has_a_test():
    files = sorted((ROOT / "zk0/aggregation/strategies").glob("[a-z]*.py"))
    assert list(STRATEGIES) == [file.stem for file in files]
    assert {"fedavg", "fedavgm", "fedadam", "fedyogi", "scaffold", "median", "trimmed_mean", "krum", "multi_krum"} <= {
        *STRATEGIES
    }
    for name, strategy in STRATEGIES.items():
        assert strategy.__module__ == f"zk0.aggregation.strategies.{name}"
        assert strategy.name == name
        assert (ROOT / f"tests/aggregation/strategies/test_{name}.py").is_file()


def test_importing_the_catalog_imports_neither_pytorch_nor_numba():
    code = "import sys, zk0.aggregation.check_strategy; print([m for m in ('torch', 'numba') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.parametrize("strategy", STRATEGIES.values(), ids=STRATEGIES)
def test_documentation_has_a_line_with_the_defaults(strategy: type[Strategy]):
    page = (ROOT / "docs/aggregation.md").read_text(encoding="utf-8")
    (line,) = [line for line in page.splitlines() if line.startswith(f"| `{strategy.name}` |")]
    documented = re.findall(r"`(\w+)` ([\d.]+)", line.split("|")[3])
    defaults = AggregationSettings().model_dump() | {"server_lr": strategy.default_server_lr}
    assert [(name, float(value)) for name, value in documented] == [(name, defaults[name]) for name, _ in documented]
    has_step = strategy.server_step is not Strategy.server_step
    assert has_step == ("server_lr" in dict(documented))


# ── settings ──────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("aggregation", "min_updates", "message"),
    [
        ({"strategy": "krum"}, 2, "krum needs 3 updates in every round"),
        ({"strategy": "krum", "malicious": 1}, 4, "krum needs 5 updates"),
        ({"strategy": "multi_krum", "selected": 6}, 5, "multi_krum needs 6 updates"),
        ({"strategy": "trimmed_mean"}, 4, "trimmed_mean needs 5 updates"),
    ],
)
def test_session_that_brings_too_few_updates_is_refused(aggregation, min_updates, message):
    with pytest.raises(SettingsError, match=f"^here: aggregation.strategy {message}"):
        check_strategy(session_with(aggregation, min_updates), "here")
    check_strategy(session_with(aggregation), "here")


def test_unknown_strategy_is_refused_with_the_names_of_all():
    with pytest.raises(SettingsError) as caught:
        check_strategy(session_with({"strategy": "fedavgg"}), "here")
    names = ", ".join(STRATEGIES)
    assert str(caught.value) == f"here: aggregation.strategy: expected one of {names}, found 'fedavgg'"


@pytest.mark.parametrize(
    ("aggregation", "changes", "what"),
    [
        (
            {"noise_multiplier": 1.0, "clip_norm": 1.0, "quarantine_factor": 0},
            {},
            "aggregation.noise_multiplier",
        ),
        ({}, {"federation": {"mode": "buffered"}, "buffer": {"size": 8}}, "federation.mode buffered"),
        (
            {"quarantine_factor": 0},
            {
                "federation": {"secure": True},
                "evaluation": {"datasets": [{"dataset": "sim:lift_cube"}], "clients_frequency": 0},
            },
            "federation.secure",
        ),
    ],
)
def test_what_needs_a_mean_of_all_updates(aggregation, changes, what):
    means = [name for name, strategy in STRATEGIES.items() if strategy.is_mean_of_all]
    assert {"median", "trimmed_mean", "krum", "multi_krum", "scaffold"}.isdisjoint(means)
    for name in STRATEGIES:
        session = session_with(aggregation | {"strategy": name}, **changes)
        if name in means:
            check_strategy(session, "here")
        else:
            with pytest.raises(SettingsError, match=rf"{what} needs .* \({', '.join(means)}\), found strategy {name}$"):
                check_strategy(session, "here")


@pytest.mark.parametrize(
    "changes",
    [
        {"federation": {"wire": "bf16"}},
        {"federation": {"wire": "int8", "wire_down": "int8"}},
        {"training": {"scope": "lora"}},
    ],
)
def test_control_variates_need_dense_float32_weights(changes):
    with pytest.raises(SettingsError, match="scaffold needs dense float32 weights in both directions"):
        check_strategy(session_with({"strategy": "scaffold"}, **changes), "here")
    check_strategy(session_with({"strategy": "scaffold"}), "here")


def test_everything_that_does_not_fit_is_reported_at_once():
    private = {"strategy": "krum", "malicious": 3, "noise_multiplier": 1.0, "clip_norm": 1.0, "quarantine_factor": 0}
    with pytest.raises(SettingsError, match=r"krum needs 9 updates .*; aggregation\.noise_multiplier needs"):
        check_strategy(session_with(private), "here")


def test_quarantine_factor_above_zero_exceeds_one():
    with pytest.raises(SettingsError, match="would reject the median"):
        session_with({"quarantine_factor": 0.5})


# ── results ───────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", [n for n, s in STRATEGIES.items() if s.server_step is Strategy.server_step])
@examples_of(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_order_changes_no_bit_and_every_weight_is_within_those_of_the_clients(tmp_path, saved, name, data):
    clients = data.draw(st.integers(3, 6))
    numbers = st.floats(-(2.0**46), 2.0**46, width=32) | st.sampled_from([0.0, -0.0, 1e-45, 3.0])
    values = data.draw(st.lists(st.lists(numbers, min_size=5, max_size=5), min_size=clients, max_size=clients))
    examples = data.draw(st.lists(st.integers(1, 10**6), min_size=clients, max_size=clients))
    save_weights(tmp_path / "global", {"w": np.zeros(5, np.float32)})
    updates = [
        saved(f"c{i}", {"w": np.array(row, np.float32)}, n)
        for i, (row, n) in enumerate(zip(values, examples, strict=True))
    ]
    terms = AggregationTerms(AggregationSettings(strategy=name, **SETTINGS))
    first = aggregate(updates, tmp_path / "global", tmp_path / "new", terms)
    again = aggregate(data.draw(st.permutations(updates)), tmp_path / "global", tmp_path / "new", terms, threads=2)
    assert again == first
    new, stacked = load_weights(tmp_path / "new")["w"], np.array(values, np.float32)
    assert (new >= stacked.min(axis=0)).all()
    assert (new <= stacked.max(axis=0)).all()


@pytest.mark.parametrize("name", [n for n, s in STRATEGIES.items() if s.server_step is not Strategy.server_step])
@examples_of(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_order_changes_no_bit_of_the_servers_state(tmp_path, saved, name, data):
    """Two rounds, the second from the state of the first, in any order of arrival on one thread and on two."""
    order = data.draw(st.permutations(range(4)))
    scales = data.draw(st.lists(st.sampled_from([1e-6, 0.01, 1.0, 1e5]), min_size=4, max_size=4))
    server_lr, clip_norm = (data.draw(st.sampled_from([None, 0.5])) for _ in range(2))
    settings = AggregationSettings(strategy=name, server_lr=server_lr, clip_norm=clip_norm)
    control = STRATEGIES[name].uses_control_variates
    found = []
    for folder, numbers, threads in (("in order", range(4), 1), ("shuffled", order, 2)):
        before, state = tmp_path / folder / "round-0.safetensors", {}
        save_weights(before, initial_weights())
        for number in (1, 2):
            rng = np.random.default_rng(number)
            weights = [perturbed(initial_weights(), rng, scale) for scale in scales]
            if control:
                weights = [
                    one | {CONTROL_PREFIX + n: perturbed({n: w}, rng, 0.1)[n] for n, w in one.items()}
                    for one in weights
                ]
            updates = [saved(f"c{i}", one, EXAMPLES[i], number) for i, one in enumerate(weights)]
            updates = [u.model_copy(update={"has_control_variates": control}) for u in updates]
            target = tmp_path / folder / f"{number}" / "weights.safetensors"
            terms = AggregationTerms(settings, number, state, 5)
            result = aggregate([updates[i] for i in numbers], before, target, terms, threads)
            before, state = target, {one.slot: Path(one.path) for one in result.server_state}
            assert sum(one.weight for one in result.contributions) == pytest.approx(1, abs=1e-15)
            assert [*state] == [*STRATEGIES[name].state_slots, *(["control"] if control else [])]
            found.append((result.digest, result.contributions, [one.digest for one in result.server_state]))
    assert found[:2] == found[2:]
    assert found[0] != found[1]

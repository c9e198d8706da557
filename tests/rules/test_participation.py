"""The sample of participants: reproducible, fair, and independent of the order of clients."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zk0.errors import RoundIncomplete, SettingsError
from zk0.records import Refusal, RoundDecision
from zk0.rules.participation import check_enough_updates, sample_clients, sample_size, with_participants
from zk0.settings.loading import parse_session
from zk0.settings.session import Session

NAMES = [f"c{i:02d}" for i in range(12)]
DECISION = RoundDecision(round=3, lr=1e-3, mu=0.0, reason="as set")


def session(**federation: object) -> Session:
    values = {"clients": [{"name": n, "dataset": "local:x"} for n in NAMES], "federation": federation}
    return parse_session(values | {"evaluation": {"datasets": [{"dataset": "local:y"}]}}, "here")


@given(st.integers(0, 2**63 - 1), st.integers(1, 1000), st.integers(0, 12), st.permutations(NAMES))
def test_the_sample_is_independent_of_the_order_of_clients(
    seed: int, number: int, count: int, order: list[str]
) -> None:
    chosen = sample_clients(seed, number, NAMES, count)
    assert len(chosen) == len(set(chosen)) == count
    assert list(chosen) == sorted(chosen)
    assert set(sample_clients(seed, number, order, count)) == set(chosen)


def test_all_clients_are_sampled_equally_often() -> None:
    """3 of 12 in 4000 rounds: 1000 each, with a standard deviation of 27."""
    counts = Counter(name for number in range(1, 4001) for name in sample_clients(42, number, NAMES, 3))
    assert counts.keys() == set(NAMES)
    assert all(abs(count - 1000) < 5 * 27.4 for count in counts.values())


def test_samples_differ_between_seeds_and_rounds() -> None:
    rounds = {sample_clients(42, number, NAMES, 3) for number in range(1, 21)}
    assert len(rounds) > 10
    assert sample_clients(43, 1, NAMES, 3) != sample_clients(42, 1, NAMES, 3)


@pytest.mark.parametrize(("fraction", "least", "count"), [(0.25, 1, 3), (0.01, 2, 2), (0.999, 1, 11)])
def test_the_decision_names_the_participants(fraction: float, least: int, count: int) -> None:
    found = with_participants(DECISION, session(fraction_fit=fraction, min_updates=least), NAMES)
    assert found.clients == sample_clients(42, 3, NAMES, count)
    assert found.reason == f"as set; {count} of 12 clients take part"
    assert found.lr == DECISION.lr


def test_the_decision_is_unchanged_if_all_clients_take_part() -> None:
    assert with_participants(DECISION, session(), NAMES) is DECISION
    assert sample_size(2, 0.1, least=2) == 2


@pytest.mark.parametrize("wrong", [0, -0.5, 1.5])
def test_invalid_fractions_are_refused(wrong: float) -> None:
    with pytest.raises(SettingsError, match=r"federation\.fraction_fit"):
        session(fraction_fit=wrong)


def test_a_round_with_too_few_updates_is_incomplete() -> None:
    refusals = (Refusal(client="a", reason="out of memory"), Refusal(client="b", reason="no answer"))
    check_enough_updates(3, (), refusals, min_updates=0)
    message = (
        r"round 3: 0 good updates, expected at least 1 \(a: out of memory; b: no answer\); finished updates are kept"
    )
    with pytest.raises(RoundIncomplete, match=message):
        check_enough_updates(3, (), refusals, min_updates=1)

"""Who takes part is drawn once, fairly, and never again otherwise."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zk0.errors import SettingsError
from zk0.participation import participants, sample_size, with_participants
from zk0.records import Decision
from zk0.session import Session, parse_session

NAMES = [f"c{i:02d}" for i in range(12)]
DECISION = Decision(round=3, lr=1e-3, mu=0.0, reason="as set")


def session(**federation: object) -> Session:
    values = {"clients": [{"name": n, "dataset": "local:x"} for n in NAMES], "federation": federation}
    return parse_session(values | {"evaluation": {"datasets": [{"dataset": "local:y"}]}}, "here")


@given(st.integers(0, 2**63 - 1), st.integers(1, 1000), st.integers(0, 12), st.permutations(NAMES))
def test_the_same_clients_in_any_order(seed: int, number: int, count: int, order: list[str]) -> None:
    chosen = participants(seed, number, NAMES, count)
    assert len(chosen) == len(set(chosen)) == count
    assert list(chosen) == sorted(chosen)
    assert set(participants(seed, number, order, count)) == set(chosen)


def test_everybody_is_drawn_as_often_as_anybody() -> None:
    """3 of 12 in 4000 rounds: 1000 each, with a standard deviation of 27."""
    drawn = Counter(name for number in range(1, 4001) for name in participants(42, number, NAMES, 3))
    assert drawn.keys() == set(NAMES)
    assert all(abs(count - 1000) < 5 * 27.4 for count in drawn.values())


def test_seeds_and_rounds_draw_apart() -> None:
    rounds = {participants(42, number, NAMES, 3) for number in range(1, 21)}
    assert len(rounds) > 10
    assert participants(43, 1, NAMES, 3) != participants(42, 1, NAMES, 3)


@pytest.mark.parametrize(("fraction", "least", "count"), [(0.25, 1, 3), (0.01, 2, 2), (0.999, 1, 11)])
def test_the_decision_names_them(fraction: float, least: int, count: int) -> None:
    found = with_participants(DECISION, session(fraction_fit=fraction, min_updates=least), NAMES)
    assert found.clients == participants(42, 3, NAMES, count)
    assert found.reason == f"as set; {count} of 12 clients take part"
    assert found.lr == DECISION.lr


def test_with_everybody_nothing_is_said() -> None:
    assert with_participants(DECISION, session(), NAMES) is DECISION
    assert sample_size(2, 0.1, least=2) == 2


@pytest.mark.parametrize("wrong", [0, -0.5, 1.5])
def test_impossible_fractions(wrong: float) -> None:
    with pytest.raises(SettingsError, match=r"federation\.fraction_fit"):
        session(fraction_fit=wrong)

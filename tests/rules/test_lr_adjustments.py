"""Adjustments of the learning rate, against numbers worked out by hand."""

from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st
from round_histories import LR, finished_round, session_with, simulate_rounds

from zk0.records import RoundRecord
from zk0.rules.lr_adjustments import boosted_clients, is_spike, lr_adjustment
from zk0.rules.lr_schedules import warm_restart_lr
from zk0.rules.round_decision import client_lr, decide_round
from zk0.settings.training_settings import SchedulerSettings

LOSS_LISTS = st.lists(st.floats(1e-3, 1e3), max_size=60)


# ── evaluation losses ─────────────────────────────────────────────────────────


def test_spike_is_strictly_over_the_threshold_in_the_last_three():
    assert not is_spike([1.0, 1.0, 1.5], 0.5)
    assert is_spike([1.0, 1.0, 1.5000001], 0.5)
    assert not is_spike([1.0, 9.0], 0.5)
    assert not is_spike([0.0, 1.0, 1.0, 1.25], 0.5)
    assert is_spike([9.0, 1.0, 0.5, 1.75], 0.5)


def test_spike_prevents_every_lr_adjustment():
    session = session_with(dynamic_training_decay=True, adaptive_lr_enabled=True, adaptive_mu_enabled=True)
    clients = {"a": 1.0, "b": 1.0, "c": 7.0}
    stalled = [2.0, 2.0, 2.0, 2.0, 2.0]
    calm, _ = simulate_rounds(session, stalled, clients)
    assert calm[-1].lr_factor == pytest.approx(1 / 1.05)
    assert calm[-1].client_lr_factors == {"c": 1.15}
    spiked, _ = simulate_rounds(session, [*stalled, 2.75], clients)
    assert spiked[-1].lr_factor == calm[-1].lr_factor  # the product of the adjustments before stays
    assert spiked[-1].lr == calm[-1].lr
    assert spiked[-1].client_lr_factors == {}
    assert "evaluation loss rose from 2 to 2.75, by more than 0.5: no lr adjustments" in spiked[-1].reason
    assert spiked[-1].mu == pytest.approx(0.01 * 1.05)  # mu is not an lr


DYNAMIC = SchedulerSettings(dynamic_training_decay=True)


@pytest.mark.parametrize(
    ("losses", "factor", "word"),
    [
        ([1.0, 1.2, 1.4, 1.6, 2.0], 1.05, "diverging"),  # improvement -1.0
        ([1.0, 1.1, 1.2, 1.5, 1.5], 0.95, "stalled"),  # -0.5 is not under -0.5
        ([1.0, 1.0, 1.0, 1.0, 1.0], 0.95, "stalled"),
        ([1.0, 1.0, 1.0, 1.0, 0.991], 0.95, "stalled"),
        ([1.0, 1.0, 1.0, 1.0, 0.98], 1.0, "improving"),
        ([8.0, 1.0, 1.0, 1.0, 1.0, 0.5], 1.0, "improving"),  # only the last five
        ([0.0, 0.0, 0.0, 0.0, 1e-3], 1.05, "diverging"),  # max(first, 1e-8)
        ([1.0, 1.0, 1.0, 1.0], 1.0, "no lr adjustment: 4 new evaluation losses, expected 5"),
    ],
)
def test_trend_of_the_window(losses, factor, word):
    found, reason = lr_adjustment(losses, 20, DYNAMIC)
    assert found == factor
    assert reason.startswith(word)


@pytest.mark.parametrize(("number", "bound", "factor"), [(19, 1.05, 1 / 1.05), (20, 1.05, 0.95), (19, 1.02, 1 / 1.02)])
def test_before_round_20_an_adjustment_is_bounded(number, bound, factor):
    settings = SchedulerSettings(dynamic_training_decay=True, max_adjust_factor=bound)
    assert lr_adjustment([1.0] * 5, number, settings)[0] == pytest.approx(factor, rel=1e-12)
    assert lr_adjustment([1.0, 1.2, 1.4, 1.6, 2.0], number, settings)[0] == min(bound, 1.05)


def test_adjustments_compound_once_a_round():
    # rounds 5 to 19 see five equal losses: 15 times 1/1.05; rounds 20 to 24: 5 times 0.95; three clients or not
    session = session_with(dynamic_training_decay=True)
    decisions, _ = simulate_rounds(session, [1.0] * 24, clients={"a": 1.0, "b": 1.0, "c": 1.0})
    assert decisions[3].lr_factor == 1.0
    assert decisions[4].lr_factor == pytest.approx(1.05**-1)
    assert decisions[18].lr_factor == pytest.approx(1.05**-15)
    assert decisions[-1].round == 24
    assert decisions[-1].lr_factor == pytest.approx(1.05**-15 * 0.95**5)
    assert decisions[-1].lr == pytest.approx(LR * 1.05**-15 * 0.95**5)
    assert "stalled: evaluation loss from 1 to 1 over 5 evaluations, x0.95; product of all adjustments x" in (
        decisions[-1].reason
    )


def test_adjustment_multiplies_the_scheduled_lr():
    session = session_with(dynamic_training_decay=True, type="cosine_warm_restarts")
    decisions, _ = simulate_rounds(session, [1.0] * 10)
    assert decisions[9].lr == pytest.approx(warm_restart_lr(LR, 5e-7, 10, 15, 2) * 1.05**-6)


def test_a_round_without_evaluation_causes_no_second_adjustment():
    session = session_with(dynamic_training_decay=True)
    decisions, _ = simulate_rounds(session, [1.0, 1.0, 1.0, 1.0, 1.0, None, None, 1.0])
    assert [d.lr_factor for d in decisions[4:]] == pytest.approx([1 / 1.05, 1 / 1.05, 1 / 1.05, 1 / 1.05**2])
    assert "no lr adjustment: 0 new evaluation losses, expected 5" in decisions[5].reason


def test_lr_stops_at_the_minimum_and_rises_from_it_at_once():
    session = session_with(dynamic_training_decay=True, eta_min=5e-5)
    decisions, history = simulate_rounds(session, [1.0] * 80)
    assert decisions[-1].lr == 5e-5
    assert decisions[-1].lr_factor == pytest.approx(0.5)
    for number in range(80, 85):  # rises by less than 0.5 in three rounds, doubles in five
        history.append(finished_round(number, 1.0 + 0.24 * (number - 79), decisions[-1], {}))
    assert decide_round(session, history).lr == pytest.approx(5e-5 * 1.05)


def test_lr_stops_at_ten_times_the_initial_one():
    session = session_with(dynamic_training_decay=True)
    decisions, _ = simulate_rounds(session, [1e-4 * 1.12**number for number in range(70)])  # x1.57 in five rounds
    assert decisions[50].lr == pytest.approx(LR * 1.05**47)
    assert decisions[51].lr == pytest.approx(10 * LR)
    assert decisions[-1].lr == pytest.approx(10 * LR)
    assert decisions[-1].lr_factor == 10.0


@given(LOSS_LISTS, st.sampled_from(["cosine", "cosine_warm_restarts", "reduce_on_plateau"]), st.booleans())
def test_lr_stays_between_its_bounds(losses, kind, everything):
    session = session_with(
        type=kind, dynamic_training_decay=True, adaptive_lr_enabled=everything, adaptive_mu_enabled=everything
    )
    decisions, history = simulate_rounds(session, list(losses), clients={"a": 1.0, "b": 1.5, "c": 9.0})
    before = 1.0
    for decision in decisions:
        assert 5e-7 <= decision.lr <= 10 * LR
        for client in "abc":
            assert 5e-7 <= client_lr(decision, client) <= 10 * LR * (1 + 1e-12)
        assert 0.95 - 1e-12 <= decision.lr_factor / before <= 1.05 + 1e-12
        before = decision.lr_factor
    assert decide_round(session, history) == decisions[-1]  # no state between calls
    assert RoundRecord.model_validate_json(history[-1].model_dump_json()) == history[-1] if history else True


# ── losses of single clients ──────────────────────────────────────────────────


def test_client_with_a_loss_far_over_the_mean_is_boosted():
    settings = SchedulerSettings(adaptive_lr_enabled=True)
    assert boosted_clients({"a": 1.0, "b": 1.0, "c": 4.0}, settings) == {}  # 4 is not over 2 * 2
    assert boosted_clients({"a": 1.0, "b": 1.0, "c": 4.01}, settings) == {"c": 1.15}
    assert boosted_clients({"a": 1.0, "b": 1.0, "c": 4.01}, SchedulerSettings()) == {}
    assert boosted_clients({}, settings) == {}


@given(st.dictionaries(st.sampled_from("abcdef"), st.floats(1e-6, 1e6)))
def test_boost_follows_its_definition(losses):
    boosted = boosted_clients(losses, SchedulerSettings(adaptive_lr_enabled=True))
    for client, loss in losses.items():
        assert boosted.get(client, 1.0) == (1.15 if loss > 2.0 * fmean(losses.values()) else 1.0)


def test_boost_reaches_the_decision_and_does_not_compound():
    session = session_with(adaptive_lr_enabled=True)
    decisions, _ = simulate_rounds(session, [1.0] * 5, clients={"a": 1.0, "b": 1.0, "c": 7.0})
    assert decisions[0].client_lr_factors == {}  # no client has trained yet
    for decision in decisions[1:]:
        assert decision.lr == LR
        assert decision.client_lr_factors == {"c": 1.15}
        assert client_lr(decision, "c") == pytest.approx(1.15e-4)
        assert client_lr(decision, "a") == LR
    assert "c: training loss 7, mean of all clients 3, its lr x1.15" in decisions[-1].reason


def test_boost_ends_when_the_client_is_not_over_the_mean():
    session = session_with(adaptive_lr_enabled=True)
    _, history = simulate_rounds(session, [1.0, 1.0], clients={"a": 1.0, "b": 1.0, "c": 7.0})
    history.append(finished_round(2, 1.0, None, {"a": 1.0, "b": 1.0}))  # c did not answer: nothing to compare
    assert decide_round(session, history).client_lr_factors == {}


def test_boost_stops_at_ten_times_the_initial_lr():
    session = session_with(adaptive_lr_enabled=True, lr_boost_factor=20.0)
    decisions, _ = simulate_rounds(session, [1.0] * 2, clients={"a": 1.0, "b": 1.0, "c": 7.0})
    assert client_lr(decisions[-1], "c") == pytest.approx(10 * LR)

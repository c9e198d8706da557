"""Decision of a round: defaults, and FedProx mu against numbers worked out by hand."""

import pytest
from round_histories import LR, session_with, simulate_rounds

from zk0.records import RoundDecision
from zk0.rules.round_decision import decide_round, round_mu


def test_default_settings():
    wild = [3.0, 1.0, 9.0, 0.1, 20.0, 20.0, 20.0, 20.0, 20.0, 20.0]
    decisions, _ = simulate_rounds(session_with(), wild, clients={"a": 0.1, "b": 90.0})
    for decision in decisions:
        assert (decision.lr, decision.mu, decision.lr_factor, decision.client_lr_factors) == (LR, 0.01, 1.0, {})
    assert decisions[0].reason == "cosine lr 0.0001; mu 0.01 (as set)"


def test_first_round_without_a_history():
    assert decide_round(session_with(), []) == RoundDecision(
        round=1, lr=LR, mu=0.01, reason="cosine lr 0.0001; mu 0.01 (as set)"
    )


def test_mu_rises_when_client_losses_differ_strongly():
    session = session_with(adaptive_mu_enabled=True)
    assert round_mu(session, 9, [1.0, 3.4])[0] == 0.01  # population std 1.2 is not over 1.2
    assert round_mu(session, 9, [1.0, 3.5])[0] == pytest.approx(0.0105)  # 1.25; a sample std would be 1.77
    assert round_mu(session, 9, [1.0, 2.8])[0] == 0.01  # 0.9; a sample std would be 1.27
    assert round_mu(session, 9, [50.0])[0] == 0.01
    assert round_mu(session, 9, [])[0] == 0.01
    assert round_mu(session_with(), 9, [1.0, 99.0]) == (0.01, "mu 0.01 (as set)")
    assert round_mu(session, 9, [1.0, 3.5])[1] == "mu 0.0105 (standard deviation of client losses 1.25, over 1.2)"


def test_mu_does_not_compound():
    decisions, _ = simulate_rounds(session_with(adaptive_mu_enabled=True), [1.0] * 30, clients={"a": 1.0, "b": 9.0})
    assert decisions[0].mu == 0.01  # no client has trained yet
    assert {round(d.mu, 12) for d in decisions[1:]} == {0.0105}


def test_mu_decays_by_round_down_to_its_minimum():
    session = session_with(mu_decay=0.98)
    assert round_mu(session, 1, [])[0] == 0.01
    assert round_mu(session, 2, [])[0] == pytest.approx(0.0098)
    assert round_mu(session, 11, [])[0] == pytest.approx(0.01 * 0.98**10)
    assert round_mu(session, 500, [])[0] == 0.001
    both = session_with(mu_decay=0.98, adaptive_mu_enabled=True)
    assert round_mu(both, 2, [1.0, 9.0])[0] == pytest.approx(0.01 * 1.05 * 0.98)


def test_an_adjusted_mu_has_a_minimum():
    both = session_with(adaptive_mu_enabled=True, mu_decay=0.1)
    assert round_mu(both, 3, [1.0, 9.0])[0] == 0.001
    assert round_mu(session_with(proximal_mu=0.0004), 3, [1.0, 1.0])[0] == 0.0004


@pytest.mark.parametrize("settings", [{}, {"adaptive_mu_enabled": True}, {"mu_decay": 0.98}])
def test_fedavg_stays_fedavg(settings):
    assert round_mu(session_with(proximal_mu=0.0, **settings), 30, [1.0, 9.0])[0] == 0.0


@pytest.mark.parametrize(
    ("clients", "is_told"), [({"a": 1.0, "b": 9.0}, True), ({"a": 1.0, "b": 1.0, "c": 9.0}, False)]
)
def test_too_few_losses_for_a_boost_are_named(clients, is_told):
    """A federation over the network does not know at its start how many nodes will train in a round."""
    decisions, _ = simulate_rounds(session_with(adaptive_lr_enabled=True), [1.0] * 2, clients=clients)
    told = "no client's lr is raised: of 2 losses none exceeds 2 times their mean" in decisions[1].reason
    assert (told, bool(decisions[1].client_lr_factors)) == (is_told, not is_told)

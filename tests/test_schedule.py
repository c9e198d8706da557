"""Learning rate and mu between rounds: against torch's schedulers, and against numbers worked out by hand."""

from statistics import fmean

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from zk0.records import Checkpoint, ClientMetrics, Decision, Evaluation, RoundRecord, Update
from zk0.schedule import (
    boosted_clients,
    client_lr,
    decide,
    global_adjustment,
    is_spike,
    plateau_lr,
    round_mu,
    step_lr,
    warm_restart_lr,
)
from zk0.session import SchedulerSettings, Session, parse_session

LR = 1e-4
losses_of_any_kind = st.lists(st.floats(1e-3, 1e3), max_size=60)


def session_with(**settings: object) -> Session:
    training = {name: settings.pop(name) for name in ("lr", "proximal_mu") if name in settings}
    return parse_session(
        {
            "clients": [{"name": name, "dataset": f"local:/{name}"} for name in "abc"],
            "evaluation": {"datasets": [{"dataset": "local:/judge"}]},
            "training": training,
            "scheduler": settings,
        },
        "test",
    )


def played(
    session: Session, server: list[float | None], clients: dict[str, float] | None = None
) -> tuple[list[Decision], list[RoundRecord]]:
    """Rounds 0, 1, ... with these server losses (None: not judged), each decided from those before."""
    decisions: list[Decision] = []
    history: list[RoundRecord] = []
    for number, loss in enumerate(server):
        decision = decide(session, history) if number else None
        decisions += [decision] if decision else []
        history.append(finished(number, loss, decision, (clients or {}) if number else {}))
    return [*decisions, decide(session, history)], history


def finished(number: int, loss: float | None, decision: Decision | None, clients: dict[str, float]) -> RoundRecord:
    return RoundRecord(
        round=number,
        decision=decision,
        checkpoint=Checkpoint(round=number, path="w", digest="d", bytes=1),
        updates=tuple(answer(client, number, value) for client, value in clients.items()),
        evaluation=None if loss is None else judged(number, loss),
        seconds=1.0,
        finished_at="2026-01-01T00:00:00+00:00",
    )


def answer(client: str, number: int, loss: float) -> Update:
    rest = dict.fromkeys(("fedprox_loss", "grad_norm", "update_norm", "lr_first", "lr_last", "seconds"), 0.0)
    metrics = ClientMetrics(policy_loss=loss, local_steps=1, **rest)
    facts = {"global_digest": "d", "path": "w", "digest": "d", "bytes": 1, "examples": 1, "dataset": "d"}
    return Update(client=client, round=number, metrics=metrics, **facts)


def judged(number: int, loss: float) -> Evaluation:
    return Evaluation(
        round=number,
        policy_loss=loss,
        policy_loss_se=None,
        action_error_degrees=1.0,
        sets=(),
        normalization="pooled",
        seed=1,
        times=8,
        seconds=1.0,
    )


def optimizer() -> torch.optim.SGD:
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=LR)


# ── torch's schedulers ────────────────────────────────────────────────────────


@pytest.mark.parametrize("steps", [1, 7, 200])
def test_cosine_within_a_round_is_torchs(steps):
    of_torch = optimizer()
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(of_torch, T_max=steps, eta_min=5e-7)
    for step in range(steps):
        assert step_lr(LR, 5e-7, "cosine", step, steps) == pytest.approx(of_torch.param_groups[0]["lr"], rel=1e-9)
        of_torch.step()
        scheduler.step()
    assert step_lr(LR, 5e-7, "cosine", 0, steps) == LR
    assert step_lr(LR, 5e-7, "cosine", steps, steps) == pytest.approx(5e-7, rel=1e-9)


@pytest.mark.parametrize(("first", "factor"), [(15, 2), (15, 1), (1, 2), (1, 1), (3, 3)])
def test_warm_restarts_over_rounds_are_torchs(first, factor):
    session = session_with(type="cosine_warm_restarts", restart_rounds=first, restart_factor=factor)
    of_torch = optimizer()
    scheduler = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(of_torch, first, factor, eta_min=5e-7)
    decisions, _ = played(session, [1.0] * 110)
    for number, decision in enumerate(decisions, start=1):
        assert decision.round == number
        assert decision.lr == pytest.approx(of_torch.param_groups[0]["lr"], rel=1e-9), number
        of_torch.step()
        scheduler.step()


def test_warm_restart_starts_again_at_rounds_16_and_46():
    rates = [warm_restart_lr(LR, 5e-7, number, 15, 2) for number in range(1, 60)]
    assert [number for number, rate in enumerate(rates, start=1) if rate == LR] == [1, 16, 46]


@given(losses_of_any_kind, st.integers(1, 6), st.sampled_from([0.0, 5e-7, 3e-5]))
def test_plateau_is_torchs(losses, patience, eta_min):
    of_torch = optimizer()
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(
        of_torch, mode="min", factor=0.5, patience=patience, min_lr=eta_min
    )
    for number, loss in enumerate(losses, start=1):
        scheduler.step(loss)
        assert plateau_lr(LR, eta_min, losses[:number], patience) == of_torch.param_groups[0]["lr"]


def test_plateau_without_a_floor_stops_where_torch_does():
    of_torch = optimizer()
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(of_torch, factor=0.5, patience=1)
    for number in range(1, 80):
        scheduler.step(1.0)
        assert plateau_lr(LR, 0.0, [1.0] * number, 1) == of_torch.param_groups[0]["lr"]
    assert plateau_lr(LR, 0.0, [1.0] * 79, 1) == LR / 2**13  # half of it is less than 1e-8


def test_plateau_halves_down_to_the_floor():
    session = session_with(type="reduce_on_plateau")
    of_torch = optimizer()
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(of_torch, factor=0.5, patience=5, min_lr=5e-7)
    decisions, _ = played(session, [1.0] * 60)
    for decision in decisions:
        scheduler.step(1.0)
        assert decision.lr == of_torch.param_groups[0]["lr"]
    # the first loss is the best; five more are tolerated, the sixth halves
    assert [d.lr for d in decisions[:13]] == [LR] * 6 + [LR / 2] * 6 + [LR / 4]
    assert decisions[-1].lr == 5e-7


def test_plateau_needs_an_improvement_of_a_ten_thousandth():
    assert plateau_lr(LR, 0, [1.0, 0.99995, 0.9999001], 1) == LR / 2
    assert plateau_lr(LR, 0, [1.0, 0.99995, 0.9998], 1) == LR


def test_rounds_that_were_not_judged_do_not_count_for_the_plateau():
    session = session_with(type="reduce_on_plateau", stall_patience=2)
    decisions, _ = played(session, [1.0, None, 1.0, None, 1.0, None, None, 1.0])
    assert [d.lr for d in decisions] == [LR] * 7 + [LR / 2]


@pytest.mark.parametrize("kind", ["cosine_warm_restarts", "reduce_on_plateau"])
def test_lr_is_constant_within_the_round(kind):
    assert {step_lr(LR, 0, kind, step, 10) for step in range(10)} == {LR}


@pytest.mark.parametrize("step", [-1, 11])
def test_step_outside_the_round_is_refused(step):
    with pytest.raises(ValueError, match="expected 0 to 10"):
        step_lr(LR, 0, "cosine", step, 10)


def test_fraction_as_restart_factor_is_refused_by_name():
    with pytest.raises(Exception, match=r"scheduler\.restart_factor.*found 1\.5"):
        session_with(restart_factor=1.5)


# ── nothing asked for ─────────────────────────────────────────────────────────


def test_everything_unset():
    wild = [3.0, 1.0, 9.0, 0.1, 20.0, 20.0, 20.0, 20.0, 20.0, 20.0]
    decisions, _ = played(session_with(), wild, clients={"a": 0.1, "b": 90.0})
    for decision in decisions:
        assert (decision.lr, decision.mu, decision.lr_factor, decision.client_lr_factors) == (LR, 0.01, 1.0, {})
    assert decisions[0].reason == "cosine lr 0.0001; mu 0.01 (as set)"


def test_first_round_without_a_history():
    assert decide(session_with(), []) == Decision(round=1, lr=LR, mu=0.01, reason="cosine lr 0.0001; mu 0.01 (as set)")


# ── spike ─────────────────────────────────────────────────────────────────────


def test_spike_is_strictly_over_the_threshold_in_the_last_three():
    assert not is_spike([1.0, 1.0, 1.5], 0.5)
    assert is_spike([1.0, 1.0, 1.5000001], 0.5)
    assert not is_spike([1.0, 9.0], 0.5)
    assert not is_spike([0.0, 1.0, 1.0, 1.25], 0.5)
    assert is_spike([9.0, 1.0, 0.5, 1.75], 0.5)


def test_spike_holds_every_lr_adjustment():
    session = session_with(dynamic_training_decay=True, adaptive_lr_enabled=True, adaptive_mu_enabled=True)
    clients = {"a": 1.0, "b": 1.0, "c": 7.0}
    stalled = [2.0, 2.0, 2.0, 2.0, 2.0]
    calm, _ = played(session, stalled, clients)
    assert calm[-1].lr_factor == pytest.approx(1 / 1.05)
    assert calm[-1].client_lr_factors == {"c": 1.15}
    spiked, _ = played(session, [*stalled, 2.75], clients)
    assert spiked[-1].lr_factor == calm[-1].lr_factor  # what was reached before stays
    assert spiked[-1].lr == calm[-1].lr
    assert spiked[-1].client_lr_factors == {}
    assert "server loss rose from 2 to 2.75, by more than 0.5: lr adjustments are held" in spiked[-1].reason
    assert spiked[-1].mu == pytest.approx(0.01 * 1.05)  # mu is not an lr


# ── global lr ─────────────────────────────────────────────────────────────────

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
        ([1.0, 1.0, 1.0, 1.0], 1.0, "no lr adjustment: 4 new server losses, expected 5"),
    ],
)
def test_trend_of_the_window(losses, factor, word):
    found, reason = global_adjustment(losses, 20, DYNAMIC)
    assert found == factor
    assert reason.startswith(word)


@pytest.mark.parametrize(("number", "bound", "factor"), [(19, 1.05, 1 / 1.05), (20, 1.05, 0.95), (19, 1.02, 1 / 1.02)])
def test_before_round_20_a_step_is_bounded(number, bound, factor):
    settings = SchedulerSettings(dynamic_training_decay=True, max_adjust_factor=bound)
    assert global_adjustment([1.0] * 5, number, settings)[0] == pytest.approx(factor, rel=1e-12)
    assert global_adjustment([1.0, 1.2, 1.4, 1.6, 2.0], number, settings)[0] == min(bound, 1.05)


def test_adjustments_compound_once_a_round():
    # rounds 5 to 19 see five equal losses: 15 times 1/1.05; rounds 20 to 24: 5 times 0.95; three clients or not
    session = session_with(dynamic_training_decay=True)
    decisions, _ = played(session, [1.0] * 24, clients={"a": 1.0, "b": 1.0, "c": 1.0})
    assert decisions[3].lr_factor == 1.0
    assert decisions[4].lr_factor == pytest.approx(1.05**-1)
    assert decisions[18].lr_factor == pytest.approx(1.05**-15)
    assert decisions[-1].round == 24
    assert decisions[-1].lr_factor == pytest.approx(1.05**-15 * 0.95**5)
    assert decisions[-1].lr == pytest.approx(LR * 1.05**-15 * 0.95**5)
    assert "stalled: server loss from 1 to 1 over 5 judged rounds, x0.95; all adjustments so far x" in (
        decisions[-1].reason
    )


def test_adjustment_multiplies_what_the_schedule_planned():
    session = session_with(dynamic_training_decay=True, type="cosine_warm_restarts")
    decisions, _ = played(session, [1.0] * 10)
    assert decisions[9].lr == pytest.approx(warm_restart_lr(LR, 5e-7, 10, 15, 2) * 1.05**-6)


def test_a_round_that_was_not_judged_brings_no_second_adjustment():
    session = session_with(dynamic_training_decay=True)
    decisions, _ = played(session, [1.0, 1.0, 1.0, 1.0, 1.0, None, None, 1.0])
    assert [d.lr_factor for d in decisions[4:]] == pytest.approx([1 / 1.05, 1 / 1.05, 1 / 1.05, 1 / 1.05**2])
    assert "no lr adjustment: 0 new server losses, expected 5" in decisions[5].reason


def test_lr_stops_at_the_floor_and_comes_back_from_it_at_once():
    session = session_with(dynamic_training_decay=True, eta_min=5e-5)
    decisions, history = played(session, [1.0] * 80)
    assert decisions[-1].lr == 5e-5
    assert decisions[-1].lr_factor == pytest.approx(0.5)
    for number in range(80, 85):  # rises by less than 0.5 in three rounds, doubles in five
        history.append(finished(number, 1.0 + 0.24 * (number - 79), decisions[-1], {}))
    assert decide(session, history).lr == pytest.approx(5e-5 * 1.05)


def test_lr_stops_at_ten_times_the_initial_one():
    session = session_with(dynamic_training_decay=True)
    decisions, _ = played(session, [1e-4 * 1.12**number for number in range(70)])  # x1.57 in five rounds
    assert decisions[50].lr == pytest.approx(LR * 1.05**47)
    assert decisions[51].lr == pytest.approx(10 * LR)
    assert decisions[-1].lr == pytest.approx(10 * LR)
    assert decisions[-1].lr_factor == 10.0


@given(losses_of_any_kind, st.sampled_from(["cosine", "cosine_warm_restarts", "reduce_on_plateau"]), st.booleans())
def test_lr_stays_between_its_bounds(losses, kind, everything):
    session = session_with(
        type=kind, dynamic_training_decay=True, adaptive_lr_enabled=everything, adaptive_mu_enabled=everything
    )
    decisions, history = played(session, list(losses), clients={"a": 1.0, "b": 1.5, "c": 9.0})
    before = 1.0
    for decision in decisions:
        assert 5e-7 <= decision.lr <= 10 * LR
        for client in "abc":
            assert 5e-7 <= client_lr(decision, client) <= 10 * LR * (1 + 1e-12)
        assert 0.95 - 1e-12 <= decision.lr_factor / before <= 1.05 + 1e-12
        before = decision.lr_factor
    assert decide(session, history) == decisions[-1]  # nothing is remembered between calls
    assert RoundRecord.model_validate_json(history[-1].model_dump_json()) == history[-1] if history else True


# ── clients ───────────────────────────────────────────────────────────────────


def test_client_far_over_the_mean_is_boosted():
    settings = SchedulerSettings(adaptive_lr_enabled=True)
    assert boosted_clients({"a": 1.0, "b": 1.0, "c": 4.0}, settings) == {}  # 4 is not over 2 * 2
    assert boosted_clients({"a": 1.0, "b": 1.0, "c": 4.01}, settings) == {"c": 1.15}
    assert boosted_clients({"a": 1.0, "b": 1.0, "c": 4.01}, SchedulerSettings()) == {}
    assert boosted_clients({}, settings) == {}


@given(st.dictionaries(st.sampled_from("abcdef"), st.floats(1e-6, 1e6)))
def test_boost_is_that_of_its_sentence(losses):
    boosted = boosted_clients(losses, SchedulerSettings(adaptive_lr_enabled=True))
    for client, loss in losses.items():
        assert boosted.get(client, 1.0) == (1.15 if loss > 2.0 * fmean(losses.values()) else 1.0)


def test_boost_reaches_the_decision_and_does_not_compound():
    session = session_with(adaptive_lr_enabled=True)
    decisions, _ = played(session, [1.0] * 5, clients={"a": 1.0, "b": 1.0, "c": 7.0})
    assert decisions[0].client_lr_factors == {}  # nobody has trained yet
    for decision in decisions[1:]:
        assert decision.lr == LR
        assert decision.client_lr_factors == {"c": 1.15}
        assert client_lr(decision, "c") == pytest.approx(1.15e-4)
        assert client_lr(decision, "a") == LR
    assert "c lost 7 against a mean of 3: its lr x1.15" in decisions[-1].reason


def test_boost_ends_with_the_round_in_which_the_client_catches_up():
    session = session_with(adaptive_lr_enabled=True)
    _, history = played(session, [1.0, 1.0], clients={"a": 1.0, "b": 1.0, "c": 7.0})
    history.append(finished(2, 1.0, None, {"a": 1.0, "b": 1.0}))  # c did not answer: nothing to compare
    assert decide(session, history).client_lr_factors == {}


def test_boost_stops_at_ten_times_the_initial_lr():
    session = session_with(adaptive_lr_enabled=True, lr_boost_factor=20.0)
    decisions, _ = played(session, [1.0] * 2, clients={"a": 1.0, "b": 1.0, "c": 7.0})
    assert client_lr(decisions[-1], "c") == pytest.approx(10 * LR)


# ── mu ────────────────────────────────────────────────────────────────────────


def test_mu_rises_when_clients_are_far_apart():
    session = session_with(adaptive_mu_enabled=True)
    assert round_mu(session, 9, [1.0, 3.4])[0] == 0.01  # population std 1.2 is not over 1.2
    assert round_mu(session, 9, [1.0, 3.5])[0] == pytest.approx(0.0105)  # 1.25; a sample std would be 1.77
    assert round_mu(session, 9, [1.0, 2.8])[0] == 0.01  # 0.9; a sample std would be 1.27
    assert round_mu(session, 9, [50.0])[0] == 0.01
    assert round_mu(session, 9, [])[0] == 0.01
    assert round_mu(session_with(), 9, [1.0, 99.0]) == (0.01, "mu 0.01 (as set)")
    assert round_mu(session, 9, [1.0, 3.5])[1] == "mu 0.0105 (client losses spread 1.25, over 1.2)"


def test_mu_does_not_compound():
    decisions, _ = played(session_with(adaptive_mu_enabled=True), [1.0] * 30, clients={"a": 1.0, "b": 9.0})
    assert decisions[0].mu == 0.01  # nobody has trained yet
    assert {round(d.mu, 12) for d in decisions[1:]} == {0.0105}


def test_mu_decays_by_round_down_to_its_floor():
    session = session_with(mu_decay=0.98)
    assert round_mu(session, 1, [])[0] == 0.01
    assert round_mu(session, 2, [])[0] == pytest.approx(0.0098)
    assert round_mu(session, 11, [])[0] == pytest.approx(0.01 * 0.98**10)
    assert round_mu(session, 500, [])[0] == 0.001
    both = session_with(mu_decay=0.98, adaptive_mu_enabled=True)
    assert round_mu(both, 2, [1.0, 9.0])[0] == pytest.approx(0.01 * 1.05 * 0.98)


def test_mu_has_a_floor_once_it_is_adjusted():
    low = {"proximal_mu": 0.0004}
    assert round_mu(session_with(adaptive_mu_enabled=True, **low), 3, [1.0, 1.0])[0] == 0.001
    assert round_mu(session_with(**low), 3, [1.0, 1.0])[0] == 0.0004
    assert round_mu(session_with(adaptive_mu_enabled=True, mu_adjust_factor=0.01), 3, [1.0, 9.0])[0] == 0.001


@pytest.mark.parametrize("settings", [{}, {"adaptive_mu_enabled": True}, {"mu_decay": 0.98}])
def test_fedavg_stays_fedavg(settings):
    assert round_mu(session_with(proximal_mu=0.0, **settings), 30, [1.0, 9.0])[0] == 0.0

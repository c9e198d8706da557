"""Learning rate schedules against PyTorch's schedulers."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from round_histories import LR, session_with, simulate_rounds

from zk0.rules.lr_schedules import plateau_lr, step_lr, warm_restart_lr

LOSS_LISTS = st.lists(st.floats(1e-3, 1e3), max_size=60)


def optimizer() -> torch.optim.SGD:
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=LR)


@pytest.mark.parametrize("steps", [1, 7, 200])
def test_cosine_within_a_round_equals_torch(steps):
    torch_optimizer = optimizer()
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(torch_optimizer, T_max=steps, eta_min=5e-7)
    for step in range(steps):
        assert step_lr(LR, 5e-7, "cosine", step, steps) == pytest.approx(
            torch_optimizer.param_groups[0]["lr"], rel=1e-9
        )
        torch_optimizer.step()
        scheduler.step()
    assert step_lr(LR, 5e-7, "cosine", 0, steps) == LR
    assert step_lr(LR, 5e-7, "cosine", steps, steps) == pytest.approx(5e-7, rel=1e-9)


@pytest.mark.parametrize(("first", "factor"), [(15, 2), (15, 1), (1, 2), (1, 1), (3, 3)])
def test_warm_restarts_over_rounds_equal_torch(first, factor):
    session = session_with(type="cosine_warm_restarts", restart_rounds=first, restart_factor=factor)
    torch_optimizer = optimizer()
    scheduler = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(torch_optimizer, first, factor, eta_min=5e-7)
    decisions, _ = simulate_rounds(session, [1.0] * 110)
    for number, decision in enumerate(decisions, start=1):
        assert decision.round == number
        assert decision.lr == pytest.approx(torch_optimizer.param_groups[0]["lr"], rel=1e-9), number
        torch_optimizer.step()
        scheduler.step()


def test_warm_restarts_at_rounds_16_and_46():
    rates = [warm_restart_lr(LR, 5e-7, number, 15, 2) for number in range(1, 60)]
    assert [number for number, rate in enumerate(rates, start=1) if rate == LR] == [1, 16, 46]


@given(LOSS_LISTS, st.integers(1, 6), st.sampled_from([0.0, 5e-7, 3e-5]))
def test_plateau_equals_torch(losses, patience, eta_min):
    torch_optimizer = optimizer()
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(
        torch_optimizer, mode="min", factor=0.5, patience=patience, min_lr=eta_min
    )
    for number, loss in enumerate(losses, start=1):
        scheduler.step(loss)
        assert plateau_lr(LR, eta_min, losses[:number], patience) == torch_optimizer.param_groups[0]["lr"]


def test_plateau_without_a_minimum_stops_where_torch_does():
    torch_optimizer = optimizer()
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(torch_optimizer, factor=0.5, patience=1)
    for number in range(1, 80):
        scheduler.step(1.0)
        assert plateau_lr(LR, 0.0, [1.0] * number, 1) == torch_optimizer.param_groups[0]["lr"]
    assert plateau_lr(LR, 0.0, [1.0] * 79, 1) == LR / 2**13  # half of it is less than 1e-8


def test_plateau_halves_down_to_the_minimum():
    session = session_with(type="reduce_on_plateau")
    torch_optimizer = optimizer()
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(torch_optimizer, factor=0.5, patience=5, min_lr=5e-7)
    decisions, _ = simulate_rounds(session, [1.0] * 60)
    for decision in decisions:
        scheduler.step(1.0)
        assert decision.lr == torch_optimizer.param_groups[0]["lr"]
    # the first loss is the best; five more are tolerated, the sixth halves
    assert [d.lr for d in decisions[:13]] == [LR] * 6 + [LR / 2] * 6 + [LR / 4]
    assert decisions[-1].lr == 5e-7


def test_plateau_needs_an_improvement_of_a_ten_thousandth():
    assert plateau_lr(LR, 0, [1.0, 0.99995, 0.9999001], 1) == LR / 2
    assert plateau_lr(LR, 0, [1.0, 0.99995, 0.9998], 1) == LR


def test_rounds_without_evaluation_do_not_count_for_the_plateau():
    session = session_with(type="reduce_on_plateau", stall_patience=2)
    decisions, _ = simulate_rounds(session, [1.0, None, 1.0, None, 1.0, None, None, 1.0])
    assert [d.lr for d in decisions] == [LR] * 7 + [LR / 2]


@pytest.mark.parametrize("kind", ["cosine_warm_restarts", "reduce_on_plateau"])
def test_lr_is_constant_within_the_round(kind):
    assert {step_lr(LR, 0, kind, step, 10) for step in range(10)} == {LR}


@pytest.mark.parametrize("step", [-1, 11])
def test_step_outside_the_round_is_refused(step):
    with pytest.raises(ValueError, match="expected 0 to 10"):
        step_lr(LR, 0, "cosine", step, 10)


def test_fractional_restart_factor_is_refused_by_name():
    with pytest.raises(Exception, match=r"scheduler\.restart_factor.*found 1\.5"):
        session_with(restart_factor=1.5)

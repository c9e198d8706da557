"""Regressions of a nightly run: beyond the noise, against the last reference run on the same machine."""

import numpy as np
import pytest
from scipy import stats

from zk0.errors import LedgerError
from zk0.nightly.nightly_ledger import BenchmarkSample, Machine, NightlyLedger, NightlyRun, PinnedSessionResult
from zk0.nightly.regression import changed_weights, compare_nightly_runs
from zk0.records import EpisodeScore, Evaluation, SetScore

HERE = Machine(cpu="c", cores=2, gpu=None)
WORSE_RATIO = 1.1


def nightly_run(
    ratios: tuple[float, ...] = (),
    sessions: tuple[PinnedSessionResult, ...] = (),
    machine: Machine = HERE,
    **more: object,
) -> NightlyRun:
    samples = (BenchmarkSample(name="step", ratios=ratios),) if ratios else ()
    values = {"started_at": "2026-11-22T02:00:00+01:00", "commit": "c", "machine": machine, "versions": {"torch": "2"}}
    return NightlyRun(**values | {"samples": samples, "sessions": sessions} | more)


def session(
    seconds: tuple[float, ...], losses: tuple[float, ...], digest: str = "d", seed: int = 1
) -> PinnedSessionResult:
    episodes = tuple(
        EpisodeScore(episode=i, frames=3, actions=30, policy_loss=x, action_error_degrees=1.0)
        for i, x in enumerate(losses)
    )
    mean = float(np.mean(losses))
    score = SetScore(
        dataset="j", episodes=episodes, frames=9, policy_loss=mean, policy_loss_se=None, action_error_degrees=1.0,
        joint_error_degrees=(), horizon_error_degrees=(),
    )  # fmt: skip
    evaluation = Evaluation(
        round=3, policy_loss=mean, policy_loss_se=None, action_error_degrees=1.0, sets=(score,),
        normalization="pooled", seed=seed, times=8, seconds=1.0,
    )  # fmt: skip
    return PinnedSessionResult(name="demo", digest=digest, seconds=seconds, evaluation=evaluation)


def test_ratios_against_welch() -> None:
    now, before = (0.30, 0.33, 0.31), (0.20, 0.21, 0.22)
    (found,) = compare_nightly_runs(nightly_run(now), [nightly_run(before)], WORSE_RATIO)
    expected = stats.ttest_ind(np.log(now), np.log(before), equal_var=False).confidence_interval(0.95)
    assert found.interval == pytest.approx((np.exp(expected.low), np.exp(expected.high)))
    assert found.change == pytest.approx(stats.gmean(now) / stats.gmean(before))
    assert found.outcome == "worse"
    assert compare_nightly_runs(nightly_run(before), [nightly_run(now)], WORSE_RATIO)[0].outcome == "better"


@pytest.mark.parametrize(
    "now",
    [
        (0.205, 0.21, 0.215),  # 2 % slower: less than worse_ratio
        (0.15, 0.25, 0.60),  # far slower on average, but with a high variance
        (0.60,),  # a single repeat has no estimate of its noise
    ],
)
def test_changes_within_the_noise_are_no_regression(now: tuple[float, ...]) -> None:
    (found,) = compare_nightly_runs(nightly_run(now), [nightly_run((0.20, 0.206, 0.203))], WORSE_RATIO)
    assert found.outcome == "same"


def test_reference_runs_give_the_noise_between_nights() -> None:
    """Repeats agree within each night, but nights differ by a tenth, so 15 % more is not significant."""
    varying = [nightly_run((0.20 * f, 0.2001 * f, 0.2002 * f)) for f in (1.0, 1.12, 0.95, 1.08, 1.0)]
    slower = nightly_run((0.23, 0.2301, 0.2302))
    assert compare_nightly_runs(slower, varying[-1:], WORSE_RATIO)[0].outcome == "worse"
    (found,) = compare_nightly_runs(slower, varying, WORSE_RATIO)
    assert found.outcome == "same"
    means = np.log([0.2001 * f for f in (1.0, 1.12, 0.95, 1.08, 1.0)])
    half_width = stats.t.ppf(0.975, 4) * np.sqrt(2) * means.std(ddof=1)
    assert np.log(found.interval) == pytest.approx([np.log(1.15) - half_width, np.log(1.15) + half_width], abs=1e-3)


def test_only_reference_runs_on_the_same_machine_count() -> None:
    good, slow = nightly_run((0.20, 0.206, 0.203)), nightly_run((0.40, 0.41, 0.42), regressions=("step is worse",))
    elsewhere = nightly_run((0.01, 0.0101, 0.0102), machine=HERE.model_copy(update={"cpu": "faster"}))
    tonight = nightly_run((0.40, 0.41, 0.42))
    assert compare_nightly_runs(tonight, [good, slow, elsewhere], WORSE_RATIO)[0].outcome == "worse", (
        "compared with a run with regressions"
    )
    accepted = slow.model_copy(update={"accepted_reason": "the new check takes that long"})
    assert compare_nightly_runs(tonight, [good, accepted], WORSE_RATIO)[0].outcome == "same"
    assert compare_nightly_runs(tonight, [elsewhere], WORSE_RATIO)[0].outcome == "new"
    assert compare_nightly_runs(tonight, [], WORSE_RATIO)[0].summary() == "step: 0.4099, nothing to compare with"


def test_times_are_paired_by_round() -> None:
    """Rounds differ by far more than nights: only paired times show that each round became 30 % slower."""
    before = (10.0, 20.0, 40.0)
    now = tuple(s * f for s, f in zip(before, (1.31, 1.29, 1.30), strict=True))
    losses = (1.0, 2.0, 3.0)
    times, loss = compare_nightly_runs(
        nightly_run(sessions=(session(now, losses),)), [nightly_run(sessions=(session(before, losses),))], WORSE_RATIO
    )  # fmt: skip
    logs = np.log([1.31, 1.29, 1.30])
    expected = stats.t.interval(0.95, 2, loc=logs.mean(), scale=stats.sem(logs))
    assert np.log(times.interval) == pytest.approx(expected)
    assert times.outcome == "worse"
    assert (loss.change, loss.outcome) == (0.0, "same")


def test_a_significant_increase_of_the_loss() -> None:
    before = session((1.0, 1.0), (1.0, 2.0, 3.0, 1.5))
    rose = session((1.0, 1.0), (1.1, 2.11, 3.09, 1.6), digest="e")
    _, loss = compare_nightly_runs(nightly_run(sessions=(rose,)), [nightly_run(sessions=(before,))], WORSE_RATIO)
    assert (loss.outcome, loss.change) == ("worse", pytest.approx(0.1))
    _, loss = compare_nightly_runs(nightly_run(sessions=(before,)), [nightly_run(sessions=(rose,))], WORSE_RATIO)
    assert loss.outcome == "better"
    varying = session((1.0, 1.0), (1.5, 1.7, 3.4, 1.2))
    assert (
        compare_nightly_runs(nightly_run(sessions=(varying,)), [nightly_run(sessions=(before,))], WORSE_RATIO)[
            1
        ].outcome
        == "same"
    )
    other_seed = session((1.0, 1.0), (1.1, 2.11, 3.09, 1.6), seed=2)
    assert (
        compare_nightly_runs(nightly_run(sessions=(other_seed,)), [nightly_run(sessions=(before,))], WORSE_RATIO)[
            1
        ].outcome
        == "new"
    )


def test_changed_weights_are_reported_for_the_same_versions_only() -> None:
    before, now = session((1.0,), (1.0, 2.0)), session((1.0,), (1.0, 2.0), digest="e")
    assert changed_weights(nightly_run(sessions=(now,)), [nightly_run(sessions=(before,))]) == ["demo"]
    assert changed_weights(nightly_run(sessions=(before,)), [nightly_run(sessions=(before,))]) == []
    assert (
        changed_weights(nightly_run(sessions=(now,), versions={"torch": "3"}), [nightly_run(sessions=(before,))]) == []
    )
    assert changed_weights(nightly_run(sessions=(now,)), []) == []


def test_the_ledger_of_nights_is_chained(tmp_path) -> None:
    ledger = NightlyLedger(tmp_path / "nights.jsonl")
    assert ledger.read() == ()
    nights = [nightly_run((0.2,)), nightly_run((0.3,), sessions=(session((1.0,), (1.0, 2.0)),), regressions=("worse",))]
    for one in nights:
        ledger.append(one)
    assert list(ledger.read()) == nights
    text = ledger.path.read_text()
    ledger.path.write_text(text.replace("0.2", "0.9", 1))
    with pytest.raises(LedgerError, match=r"line 2: chained to .*: a line before it was changed, added or removed"):
        ledger.read()
    ledger.path.write_text(text.replace('"cores":2', '"cores":"many"', 1))
    with pytest.raises(LedgerError, match=r"line 1: not a night: night.machine.cores: "):
        ledger.append(nights[0])
    ledger.path.write_text(text + '{"previous":"')  # cut short by a crash
    ledger.append(nights[0])
    assert len(ledger.read()) == 3

"""When a night counts as worse: beyond the noise, against the last good one, on the same machine only."""

import numpy as np
import pytest
from scipy import stats

from zk0.errors import LedgerError
from zk0.nights import Machine, Night, NightLedger, PinnedSession, Sample
from zk0.records import EpisodeScore, Evaluation, SetScore
from zk0.regression import changed_weights, compare

HERE = Machine(cpu="c", cores=2, gpu=None)
LEAST = 1.1


def night(
    ratios: tuple[float, ...] = (), sessions: tuple[PinnedSession, ...] = (), machine: Machine = HERE, **more: object
) -> Night:
    samples = (Sample(name="step", ratios=ratios),) if ratios else ()
    values = {"began_at": "2026-11-22T02:00:00+01:00", "commit": "c", "machine": machine, "versions": {"torch": "2"}}
    return Night(**values | {"samples": samples, "sessions": sessions} | more)


def session(seconds: tuple[float, ...], losses: tuple[float, ...], digest: str = "d", seed: int = 1) -> PinnedSession:
    episodes = tuple(
        EpisodeScore(episode=i, frames=3, actions=30, policy_loss=x, action_error_degrees=1.0)
        for i, x in enumerate(losses)
    )
    mean = float(np.mean(losses))
    score = SetScore(
        dataset="j", episodes=episodes, frames=9, policy_loss=mean, policy_loss_se=None, action_error_degrees=1.0,
        joint_error_degrees=(), horizon_error_degrees=(),
    )  # fmt: skip
    judged = Evaluation(
        round=3, policy_loss=mean, policy_loss_se=None, action_error_degrees=1.0, sets=(score,),
        normalization="pooled", seed=seed, times=8, seconds=1.0,
    )  # fmt: skip
    return PinnedSession(name="demo", digest=digest, seconds=seconds, evaluation=judged)


def test_a_ratio_against_welch() -> None:
    now, before = (0.30, 0.33, 0.31), (0.20, 0.21, 0.22)
    (found,) = compare(night(now), [night(before)], LEAST)
    wanted = stats.ttest_ind(np.log(now), np.log(before), equal_var=False).confidence_interval(0.95)
    assert found.interval == pytest.approx((np.exp(wanted.low), np.exp(wanted.high)))
    assert found.change == pytest.approx(stats.gmean(now) / stats.gmean(before))
    assert found.outcome == "worse"
    assert compare(night(before), [night(now)], LEAST)[0].outcome == "better"


@pytest.mark.parametrize(
    "now",
    [
        (0.205, 0.21, 0.215),  # 2 % slower: less than anybody would act on
        (0.15, 0.25, 0.60),  # far slower on average, but it varies as much
        (0.60,),  # a single repeat says nothing about its noise
    ],
)
def test_what_lies_within_the_noise(now: tuple[float, ...]) -> None:
    (found,) = compare(night(now), [night((0.20, 0.206, 0.203))], LEAST)
    assert found.outcome == "same"


def test_good_nights_tell_the_noise_between_nights() -> None:
    """Repeats agree within each night, but nights differ by a tenth: 15 % more is nothing new then."""
    restless = [night((0.20 * f, 0.2001 * f, 0.2002 * f)) for f in (1.0, 1.12, 0.95, 1.08, 1.0)]
    slower = night((0.23, 0.2301, 0.2302))
    assert compare(slower, restless[-1:], LEAST)[0].outcome == "worse"
    (found,) = compare(slower, restless, LEAST)
    assert found.outcome == "same"
    means = np.log([0.2001 * f for f in (1.0, 1.12, 0.95, 1.08, 1.0)])
    half = stats.t.ppf(0.975, 4) * np.sqrt(2) * means.std(ddof=1)
    assert np.log(found.interval) == pytest.approx([np.log(1.15) - half, np.log(1.15) + half], abs=1e-3)


def test_only_good_nights_on_the_same_machine_count() -> None:
    good, slow = night((0.20, 0.206, 0.203)), night((0.40, 0.41, 0.42), regressions=("step is worse",))
    elsewhere = night((0.01, 0.0101, 0.0102), machine=HERE.model_copy(update={"cpu": "faster"}))
    tonight = night((0.40, 0.41, 0.42))
    assert compare(tonight, [good, slow, elsewhere], LEAST)[0].outcome == "worse", "compared with a bad night"
    accepted = slow.model_copy(update={"accepted": "the new check costs that"})
    assert compare(tonight, [good, accepted], LEAST)[0].outcome == "same"
    assert compare(tonight, [elsewhere], LEAST)[0].outcome == "new"
    assert compare(tonight, [], LEAST)[0].told() == "step: 0.4099, nothing to compare with"


def test_rounds_are_paired() -> None:
    """Rounds differ by far more than the nights: only the pairs show that each became 30 % slower."""
    before = (10.0, 20.0, 40.0)
    now = tuple(s * f for s, f in zip(before, (1.31, 1.29, 1.30), strict=True))
    losses = (1.0, 2.0, 3.0)
    times, loss = compare(
        night(sessions=(session(now, losses),)), [night(sessions=(session(before, losses),))], LEAST
    )  # fmt: skip
    logs = np.log([1.31, 1.29, 1.30])
    wanted = stats.t.interval(0.95, 2, loc=logs.mean(), scale=stats.sem(logs))
    assert np.log(times.interval) == pytest.approx(wanted)
    assert times.outcome == "worse"
    assert (loss.change, loss.outcome) == (0.0, "same")


def test_a_loss_that_surely_rose() -> None:
    before = session((1.0, 1.0), (1.0, 2.0, 3.0, 1.5))
    rose = session((1.0, 1.0), (1.1, 2.11, 3.09, 1.6), digest="e")
    _, loss = compare(night(sessions=(rose,)), [night(sessions=(before,))], LEAST)
    assert (loss.outcome, loss.change) == ("worse", pytest.approx(0.1))
    _, loss = compare(night(sessions=(before,)), [night(sessions=(rose,))], LEAST)
    assert loss.outcome == "better"
    shaky = session((1.0, 1.0), (1.5, 1.7, 3.4, 1.2))
    assert compare(night(sessions=(shaky,)), [night(sessions=(before,))], LEAST)[1].outcome == "same"
    otherwise = session((1.0, 1.0), (1.1, 2.11, 3.09, 1.6), seed=2)
    assert compare(night(sessions=(otherwise,)), [night(sessions=(before,))], LEAST)[1].outcome == "new"


def test_other_weights_are_noticed_with_the_same_versions_only() -> None:
    before, now = session((1.0,), (1.0, 2.0)), session((1.0,), (1.0, 2.0), digest="e")
    assert changed_weights(night(sessions=(now,)), [night(sessions=(before,))]) == ["demo"]
    assert changed_weights(night(sessions=(before,)), [night(sessions=(before,))]) == []
    assert changed_weights(night(sessions=(now,), versions={"torch": "3"}), [night(sessions=(before,))]) == []
    assert changed_weights(night(sessions=(now,)), []) == []


def test_the_record_of_nights_is_chained(tmp_path) -> None:
    ledger = NightLedger(tmp_path / "nights.jsonl")
    assert ledger.read() == ()
    nights = [night((0.2,)), night((0.3,), sessions=(session((1.0,), (1.0, 2.0)),), regressions=("worse",))]
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

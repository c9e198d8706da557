"""Warnings about motion: neighbors of the defects in defects.py, on both sides of each limit."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from defects import CASES, DATA, STATE, change_episode, change_vectors

from zk0.data.check import check_dataset
from zk0.data.check.motion_measures import idle_frames, measure_motion
from zk0.data.check.path_copies import near_copies
from zk0.data.frame_table import EpisodeFrames


def warnings(b) -> dict[str, tuple[int, ...]]:
    """Return rule -> episodes of all warnings of the quick check, which a joining client runs."""
    return {f.rule: f.episodes for f in check_dataset(b.root, dataset="x", quick=True).findings}


@pytest.mark.parametrize("frame", [1, 10])
@pytest.mark.parametrize("height", [250, -250])
def test_a_jump_is_found_beside_the_first_and_the_last_frame(breaker, frame, height) -> None:
    change_episode(
        breaker, 2, lambda v: v + height * ((np.arange(12)[:, None] == frame) & (np.arange(6) == 1)), [STATE]
    )
    assert warnings(breaker) == {"glitch": (2,)}


def test_a_fast_move_that_stays_is_no_jump(breaker) -> None:
    change_episode(breaker, 2, lambda v: v + 150 * ((np.arange(12)[:, None] >= 6) & (np.arange(6) == 1)))
    assert warnings(breaker) == {}


def test_an_arm_at_rest_at_zero_has_lost_no_reading(breaker) -> None:
    change_episode(breaker, 0, lambda v: v * np.clip((np.arange(12)[:, None] - 2) / 20, 0, 1), [STATE, "action"])
    assert "zero-rows" not in warnings(breaker)


def test_actions_of_zeros_are_found_too(breaker) -> None:
    change_episode(breaker, 1, lambda v: np.where(np.isin(np.arange(12)[:, None], (4, 5)), 0, v), ["action"])
    assert warnings(breaker)["zero-rows"] == (1,)


def test_a_joint_that_nobody_moves_does_not_stand_still(breaker) -> None:
    change_episode(breaker, 1, lambda v: np.where(np.arange(6) == 2, v[0], v))
    assert warnings(breaker) == {}


@pytest.mark.parametrize("scale", [1.0, 0.01, 7.0], ids=["degrees", "radians", "other units"])
@pytest.mark.parametrize("name", ["a_joint_that_jumps_and_returns", "a_servo_that_is_off", "an_episode_without_motion"])
def test_the_limits_hold_in_every_unit(breaker, name, scale) -> None:
    """Of another robot, whose units nobody knows."""
    rules, break_it = CASES[name]
    break_it(breaker)
    for key in (STATE, "action"):
        change_vectors(breaker, key, lambda v: v * scale)
        breaker.info(lambda i, key=key: i["features"][key].update(names=[f"leg_{c}" for c in "abcdef"]))
    assert warnings(breaker).keys() == rules


@pytest.mark.parametrize(("still", "reported"), [(5, False), (10, True)])
def test_idle_ends_count_from_half_of_the_episode_on(breaker, still, reported) -> None:
    change_episode(
        breaker, 2, lambda v: np.concatenate([v[: 12 - still], np.repeat(v[11 - still : 12 - still], still, 0)])
    )
    assert ("idle-ends" in warnings(breaker)) is reported


def test_noise_of_a_servo_is_no_motion() -> None:
    noise = np.random.default_rng(0).normal(0, 0.2, (50, 2))
    assert idle_frames(noise, np.full(2, 100.0)) == (50, 0)


def test_a_state_that_leads_by_one_frame_is_usual(breaker) -> None:
    states = np.array(pq.read_table(breaker.root / DATA)[STATE].to_pylist())
    for episode in range(4):
        own = states[12 * episode :][:12]
        change_episode(breaker, episode, lambda v, own=own: np.concatenate([own[:1], own[:-1]]), ["action"])
    assert warnings(breaker) == {}


def test_one_shifted_episode_is_named(breaker) -> None:
    states = np.array(pq.read_table(breaker.root / DATA)[STATE].to_pylist())[24:36]
    change_episode(breaker, 2, lambda v: np.concatenate([states[[0, 0]], states[:-2]]), ["action"])
    assert warnings(breaker) == {"action-lag": (2,)}


def test_small_actions_that_follow_the_states_are_no_differences(breaker) -> None:
    states = np.array(pq.read_table(breaker.root / DATA)[STATE].to_pylist())
    change_vectors(breaker, "action", lambda v: states * 0.3)
    assert warnings(breaker) == {}


def test_actions_at_the_limits_of_most_joints_are_found_where_the_arm_obeys(breaker) -> None:
    for key in (STATE, "action"):
        change_vectors(breaker, key, lambda v: np.where(np.arange(6) < 4, np.clip(v, -20, 20), v))
    assert "clipped-actions" in warnings(breaker)


def test_normalized_joints_at_their_stops_are_not_cut_off(breaker) -> None:
    for key in (STATE, "action"):
        change_vectors(breaker, key, lambda v: np.where(np.arange(6) < 5, np.clip(5 * v, -100, 100), v))
    assert warnings(breaker) == {}


def test_one_joint_at_its_stop_is_usual(breaker) -> None:
    for key in (STATE, "action"):
        change_vectors(breaker, key, lambda v: np.where(np.arange(6) == 1, np.clip(v, -20, 20), v))
    assert warnings(breaker) == {}


def test_a_gripper_a_little_beyond_its_range_is_usual(breaker) -> None:
    for key in (STATE, "action"):
        change_vectors(breaker, key, lambda v: np.where(np.arange(6) == 5, v * 1.05, v))
    assert warnings(breaker) == {}


def test_one_success_is_enough(breaker) -> None:
    CASES["no_demonstration_succeeds"][1](breaker)
    breaker.column(DATA, "next.success", lambda v: [*v[:-1], True])
    assert warnings(breaker) == {}


def test_labels_in_lists_are_read(breaker) -> None:
    CASES["no_demonstration_succeeds"][1](breaker)
    labels = pa.array([[False]] * 48, pa.list_(pa.bool_(), 1))
    breaker.table(DATA, lambda t: t.drop_columns(["next.success"]).append_column("next.success", labels))
    assert warnings(breaker) == {"no-success": ()}


@pytest.mark.parametrize(
    "copy",
    [
        lambda v: v[:-5],
        lambda v: v[50:],
        lambda v: v[40:-40],
        lambda v: np.repeat(v, 2, axis=0),
        lambda v: np.concatenate([np.repeat(v[:1], 30, axis=0), v]),
        lambda v: v + np.random.default_rng(1).normal(0, 0.1, v.shape),
    ],
    ids=["cut at the end", "cut by a quarter", "cut at both ends", "slower", "idle before", "noise"],
)
def test_a_copy_that_is_cut_slowed_or_noisy_takes_nearly_the_same_path(copy) -> None:
    rng = np.random.default_rng(0)
    time = np.linspace(0, 6, 200)[:, None]
    one, other = (rng.uniform(20, 80, 6) * np.sin(time * rng.uniform(0.5, 1.5, 6) + rng.uniform(0, 6, 6)) for _ in "ab")
    frames = {e: EpisodeFrames(v, v) for e, v in enumerate((one, other, copy(one)))}
    motion = measure_motion(frames)
    assert motion is not None
    assert near_copies(motion, 0.05) == {2: 0}

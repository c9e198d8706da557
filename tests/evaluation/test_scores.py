"""Scores of an evaluation: reproducible to the bit, and equal to a calculation by hand."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from zk0.data.episode_reader import EpisodeReader
from zk0.errors import EvaluationError
from zk0.evaluation.scores import composite_score, score_policy
from zk0.policy.processors import make_processors
from zk0.policy.smolvla.draws import frame_noise, stratified_times
from zk0.policy.smolvla.frame_features import FeatureKind
from zk0.records import SetScore, Statistics
from zk0.training.cached_examples import CachedExamples
from zk0.training.decoded_examples import DecodedExamples
from zk0.training.feature_cache import FeatureCache

LENGTHS = (13, 12, 17)


@pytest.fixture
def examples(policy: Any, statistics: Statistics, recordings: dict[str, Path], shared_cache: Path) -> CachedExamples:
    pre, _ = make_processors(policy, statistics)
    cache = FeatureCache(shared_cache / "features", policy, ("overhead", "wrist"))
    return CachedExamples(EpisodeReader(recordings["evaluation"]), (0, 1, 2), policy, pre, cache)


def evaluate(policy: Any, examples: CachedExamples, statistics: Statistics, **changes: Any) -> SetScore:
    return score_policy(policy, examples, statistics, **{"dataset": "set", "seed": 7, "times": 3} | changes)


def test_scores_are_reproducible(policy: Any, examples: CachedExamples, statistics: Statistics) -> None:
    first = evaluate(policy, examples, statistics)
    torch.manual_seed(99)
    policy.train()
    assert evaluate(policy, examples, statistics) == first
    assert evaluate(policy, examples, statistics, seed=8).policy_loss != first.policy_loss


def test_both_kinds_of_features_give_the_same_scores(
    policy: Any, examples: CachedExamples, statistics: Statistics, recordings: dict[str, Path], shared_cache: Path
) -> None:
    pre, _ = make_processors(policy, statistics)
    cache = FeatureCache(shared_cache / "features", policy, ("overhead", "wrist"), "kv")
    other = evaluate(
        policy, CachedExamples(EpisodeReader(recordings["evaluation"]), (0, 1, 2), policy, pre, cache), statistics
    )
    first = evaluate(policy, examples, statistics)
    assert other.policy_loss == pytest.approx(first.policy_loss, rel=1e-6)
    assert other.action_error_degrees == pytest.approx(first.action_error_degrees, rel=1e-6)


@pytest.mark.parametrize("batch_size", [4, 100])
def test_the_policys_own_forward_gives_the_same_scores(
    policy: Any, examples: CachedExamples, statistics: Statistics, recordings: dict[str, Path], batch_size: int
) -> None:
    """`training.features = "off"`: frames are decoded and encoded each time, with the same draws."""
    pre, _ = make_processors(policy, statistics)
    decoded = DecodedExamples(recordings["evaluation"], (0, 1, 2), policy, pre, {})
    first, other = (evaluate(policy, e, statistics, batch_size=batch_size, every_frames=4) for e in (examples, decoded))
    assert other.frames == first.frames == 12
    assert other.policy_loss == pytest.approx(first.policy_loss, rel=1e-5)
    assert other.action_error_degrees == pytest.approx(first.action_error_degrees, rel=1e-5)
    assert [e.policy_loss for e in other.episodes] == pytest.approx([e.policy_loss for e in first.episodes], rel=1e-5)
    assert decoded.cameras == examples.cameras
    assert other == evaluate(policy, decoded, statistics, batch_size=batch_size, every_frames=4)


@pytest.mark.parametrize("kind", ["embeddings", "kv"])
def test_only_evaluated_frames_are_encoded(
    policy: Any, statistics: Statistics, recordings: dict[str, Path], tmp_path: Path, kind: FeatureKind
) -> None:
    pre, _ = make_processors(policy, statistics)
    reader, done = EpisodeReader(recordings["evaluation"]), list[tuple[int, int]]()
    found = []
    for folder, every in (("all", 1), ("some", 4)):
        cache = FeatureCache(tmp_path / folder, policy, ("overhead", "wrist"), kind)
        chosen = CachedExamples(
            reader, (0, 1, 2), policy, pre, cache, lambda *frames: done.append(frames), every=every
        )  # fmt: skip
        found.append(evaluate(policy, chosen, statistics, every_frames=4))
    assert (done[2], done[-1]) == ((42, 42), (12, 12))
    assert found[1].policy_loss == pytest.approx(found[0].policy_loss, rel=1e-6)
    sizes = [sum(f.stat().st_size for f in (tmp_path / folder).iterdir()) for folder in ("all", "some")]
    assert sizes[1] < 0.4 * sizes[0]
    with pytest.raises(AssertionError, match="frame 1 has no features"):
        chosen.prefix_of_frames([1])


@pytest.mark.parametrize("batch_size", [1, 5, 100])
def test_scores_do_not_depend_on_the_batch_size(
    policy: Any, examples: CachedExamples, statistics: Statistics, batch_size: int
) -> None:
    first = evaluate(policy, examples, statistics)
    other = evaluate(policy, examples, statistics, batch_size=batch_size)
    assert other.policy_loss == pytest.approx(first.policy_loss, rel=1e-6)
    assert other.policy_loss_se == pytest.approx(first.policy_loss_se, rel=1e-5)
    assert other.action_error_degrees == pytest.approx(first.action_error_degrees, rel=1e-6)


def by_hand(
    policy: Any, root: Path, statistics: Statistics, seed: int, times: int
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Loss sums by frame and time, and absolute errors in degrees by frame, with plain LeRobot."""
    from lerobot.datasets import LeRobotDataset

    pre, post = make_processors(policy, statistics)
    deltas = {"action": [i / 10 for i in range(10)]}
    data = LeRobotDataset("local/set", root=root, delta_timestamps=deltas, video_backend="pyav")
    sums, errors = [], []
    for i in range(len(data)):
        item = data[i]
        episode, frame, real = int(item["episode_index"]), int(item["frame_index"]), ~item["action_is_pad"]
        noise = torch.from_numpy(frame_noise(seed, episode, frame, (times + 1, 10, 32)))
        batch = pre(torch.utils.data.default_collate([item]))
        losses = []
        for index in range(times):
            at = torch.tensor([((index + 0.5) / times) ** (2 / 3) * 0.999 + 0.001])
            with torch.no_grad():
                losses.append(policy.forward(dict(batch), noise=noise[index][None], time=at)[0].item())
        sums.append([loss * int(real.sum()) * 6 for loss in losses])
        observed = {k: v for k, v in batch.items() if k not in ("action", "action_is_pad")}
        predicted = post(policy.predict_action_chunk(observed, noise=noise[times][None]))[0]
        errors.append((predicted - item["action"]).abs().numpy()[real.numpy()])
    return np.array(sums), errors


def test_the_numbers_are_those_of_a_hand_calculation(
    policy: Any, examples: CachedExamples, statistics: Statistics, recordings: dict[str, Path]
) -> None:
    found = evaluate(policy, examples, statistics)
    sums, errors = by_hand(policy, recordings["evaluation"], statistics, seed=7, times=3)
    counts = np.array([e.size * 3 for e in errors])
    assert found.policy_loss == pytest.approx(sums.sum() / counts.sum(), rel=1e-6)

    edges = np.cumsum((0, *LENGTHS))
    spans = list(pairwise(edges))
    means = [sums[a:b].sum() / counts[a:b].sum() for a, b in spans]
    lengths = np.array([counts[a:b].sum() for a, b in spans])
    parts = lengths / lengths.sum() * (np.array(means) - found.policy_loss)
    assert found.policy_loss_se == pytest.approx((3 / 2 * (parts**2).sum()) ** 0.5, rel=1e-5)

    joined = np.concatenate(errors)
    assert found.action_error_degrees == pytest.approx(joined.mean(), rel=1e-5)
    assert found.joint_error_degrees == pytest.approx(joined.mean(axis=0), rel=1e-5)
    horizon = [np.mean([e[step] for e in errors if len(e) > step]) for step in range(10)]
    assert found.horizon_error_degrees == pytest.approx(horizon, rel=1e-5)
    assert found.frames == 42

    assert [(e.episode, e.frames) for e in found.episodes] == [(0, 13), (1, 12), (2, 17)]
    assert [e.policy_loss for e in found.episodes] == pytest.approx(means, rel=1e-6)
    by_episode = [np.concatenate(errors[a:b]) for a, b in spans]
    assert [e.action_error_degrees for e in found.episodes] == pytest.approx([e.mean() for e in by_episode], rel=1e-5)
    assert [e.actions for e in found.episodes] == [len(e) for e in by_episode]


def test_padded_steps_do_not_count(policy: Any, examples: CachedExamples, statistics: Statistics) -> None:
    first = evaluate(policy, examples, statistics)
    padded = examples.padding.numpy()
    examples.raw_chunks[padded] += 1000
    examples.actions[examples.padding] += 1000
    assert evaluate(policy, examples, statistics) == first


def test_a_single_episode_has_no_standard_error(
    policy: Any, statistics: Statistics, recordings: dict[str, Path], shared_cache: Path
) -> None:
    pre, _ = make_processors(policy, statistics)
    cache = FeatureCache(shared_cache / "features", policy, ("overhead", "wrist"))
    one = CachedExamples(EpisodeReader(recordings["evaluation"]), (1,), policy, pre, cache)
    assert evaluate(policy, one, statistics).policy_loss_se is None


def test_every_nth_frame_of_each_episode_is_evaluated(
    policy: Any, examples: CachedExamples, statistics: Statistics
) -> None:
    every = evaluate(policy, examples, statistics, every_frames=1)
    assert every == evaluate(policy, examples, statistics)
    found = evaluate(policy, examples, statistics, every_frames=5)
    assert [(e.episode, e.frames) for e in found.episodes] == [(0, 3), (1, 3), (2, 4)]  # of 13, 12 and 17
    assert found.policy_loss != every.policy_loss
    first = evaluate(policy, examples, statistics, every_frames=100)
    assert [(e.episode, e.frames) for e in first.episodes] == [(0, 1), (1, 1), (2, 1)]


def test_weights_that_are_not_finite_give_an_error(
    policy: Any, examples: CachedExamples, statistics: Statistics
) -> None:
    with torch.no_grad():
        policy.model.action_out_proj.bias.fill_(float("nan"))
    with pytest.raises(EvaluationError, match=r"set: policy loss nan.*finite"):
        evaluate(policy, examples, statistics)


def test_times_are_the_middle_quantiles_of_the_training_distribution() -> None:
    from scipy.stats import beta

    expected = 0.001 + 0.999 * beta(1.5, 1).ppf((np.arange(8) + 0.5) / 8)
    assert stratified_times(8) == pytest.approx(expected, rel=1e-9)


def test_noise_depends_on_seed_episode_and_frame_only() -> None:
    shape = (4, 10, 32)
    places = [(7, 0, 0), (7, 0, 1), (7, 1, 0), (8, 0, 0), (7, 2**20, 5)]
    drawn = [frame_noise(*place, shape) for place in places]
    assert all((frame_noise(*place, shape) == noise).all() for place, noise in zip(places, drawn, strict=True))
    assert len({noise.tobytes() for noise in drawn}) == 5
    assert abs(np.stack(drawn).mean()) < 0.02
    assert abs(np.stack(drawn).std() - 1) < 0.02


def test_composite_of_sets() -> None:
    one = SetScore(
        dataset="a", episodes=(), frames=9, policy_loss=1.0, policy_loss_se=0.3, action_error_degrees=4.0,
        joint_error_degrees=(), horizon_error_degrees=(),
    )  # fmt: skip
    two = one.model_copy(update={"policy_loss": 2.0, "policy_loss_se": 0.4, "action_error_degrees": 6.0})
    assert composite_score([one, two]) == (1.5, pytest.approx(0.25), 5.0)
    assert composite_score([one, two.model_copy(update={"policy_loss_se": None})])[1] is None

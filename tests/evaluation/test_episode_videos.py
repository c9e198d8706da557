"""Episode videos: they show the recorded actions and the policy's predictions."""

import json
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import imageio.v2 as imageio
import numpy as np
import pytest

from zk0.client.held_out_videos import render_held_out_videos
from zk0.data.episode_reader import EpisodeReader
from zk0.evaluation.episode_videos import VideoRenderer
from zk0.evaluation.scores import score_policy
from zk0.records import EpisodeVideo, SetScore, Statistics
from zk0.settings.dataset_settings import SO101_JOINTS, ClientSettings
from zk0.settings.plans import EvaluationPlan, RoundPlan, SessionTerms, VideoPlan
from zk0.storage.results import read_episode_videos
from zk0.training.cached_examples import CachedExamples
from zk0.training.feature_cache import FeatureCache

PLAN = VideoPlan(episodes=2, camera_height=96, timestamp=datetime(2026, 1, 2, 3, 4, 5))


@pytest.fixture
def renderer(policy: Any, statistics: Statistics, recordings: dict[str, Path], shared_cache: Path) -> VideoRenderer:
    from zk0.policy.processors import make_processors

    pre, _ = make_processors(policy, statistics)
    cache = FeatureCache(shared_cache / "features", policy, ("overhead", "wrist"))
    reader = EpisodeReader(recordings["evaluation"])
    examples = CachedExamples(reader, (0, 1, 2), policy, pre, cache)
    return VideoRenderer(policy, examples, reader, statistics, PLAN, (7, 3), SO101_JOINTS, 1)


def evaluate(renderer: VideoRenderer) -> SetScore:
    return score_policy(renderer.policy, renderer.examples, renderer.statistics, dataset="local:set", seed=7, times=3)


def render(renderer: VideoRenderer, folder: Path, found: SetScore) -> tuple[EpisodeVideo, ...]:
    return renderer.render(found, (4, "c" * 64), None, folder, folder / "evaluate")


def test_the_first_episodes_are_rendered_once_at_the_datasets_frame_rate(
    renderer: VideoRenderer, tmp_path: Path
) -> None:
    found = evaluate(renderer)
    videos = render(renderer, tmp_path, found)
    assert [(f.episode, f.video_error) for f in videos] == [(0, None), (1, None)]
    assert [f.policy_loss for f in videos] == [e.policy_loss for e in found.episodes[:2]]
    assert [f.duration_seconds for f in videos] == [1.3, 1.2]
    first = tmp_path / str(videos[0].video)
    assert first.name == "rollout_20260102_030405.mp4"
    with imageio.get_reader(first) as reader:
        assert reader.count_frames() == 13
        assert reader.get_meta_data()["fps"] == 10
    result = json.loads(first.with_suffix(".json").read_text())
    assert (result["kind"], result["success"], result["round"]) == ("open-loop", None, 4)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    assert render(renderer, tmp_path, found) == videos == tuple(read_episode_videos(tmp_path))
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == before


def test_the_predictions_are_those_that_were_evaluated(renderer: VideoRenderer) -> None:
    """The mean error of the predicted chunks is the action error of the evaluation."""
    found = evaluate(renderer)
    for episode, measured in zip(renderer.reader.read([0, 1, 2]), found.episodes, strict=True):
        recording = renderer._recording(episode, "")
        assert recording.images["overhead"][0].shape == (64, 64, 3)
        errors = [
            np.abs(chunk[: len(recording.recorded) - t] - recording.recorded[t : t + len(chunk)])
            for t, chunk in enumerate(recording.predicted)
        ]
        assert np.concatenate(errors).mean() == pytest.approx(measured.action_error_degrees, rel=1e-5)
        assert sum(len(e) for e in errors) == measured.actions


def test_frames_that_are_not_evaluated_continue_the_newest_chunk(
    policy: Any, statistics: Statistics, recordings: dict[str, Path], shared_cache: Path, renderer: VideoRenderer
) -> None:
    """Only every fourth frame has features, and nothing else is decoded for the encoder."""
    from dataclasses import replace

    from zk0.policy.processors import make_processors

    pre, _ = make_processors(policy, statistics)
    cache = FeatureCache(shared_cache / "features", policy, ("overhead", "wrist"))
    every_fourth = CachedExamples(renderer.reader, (0,), policy, pre, cache, every=4)
    (episode,) = renderer.reader.read([0])
    found = replace(renderer, examples=every_fourth, every_frames=4)._recording(episode, "").predicted
    all_frames = renderer._recording(episode, "").predicted
    assert found.shape == (13, 7, 6)
    for t in range(13):
        np.testing.assert_allclose(found[t], all_frames[t - t % 4][t % 4 : t % 4 + 7], rtol=1e-5, atol=1e-5)


def test_a_video_that_cannot_be_rendered_is_reported(
    renderer: VideoRenderer, recordings: dict[str, Path], tmp_path: Path, record: Callable[..., Path]
) -> None:
    root = record(tmp_path / "copy", 3, (13, 12, 17))
    found = evaluate(renderer)
    for video in (root / "videos").rglob("*.mp4"):
        video.write_bytes(b"no video")
    broken = VideoRenderer(
        renderer.policy, renderer.examples, EpisodeReader(root), renderer.statistics, PLAN, (7, 3), SO101_JOINTS, 1
    )  # fmt: skip
    videos = render(broken, tmp_path, found)
    assert [f.video for f in videos] == [None, None]
    assert all("cannot be decoded" in str(f.video_error) for f in videos)
    assert list((tmp_path / "evaluate").glob("*.mp4")) == []


class TestClient:
    @pytest.mark.parametrize("video_folder", [None, "session"])
    def test_videos_of_held_out_episodes_lie_in_the_clients_folder(
        self,
        video_folder: str | None,
        recordings: dict[str, Path],
        terms: SessionTerms,
        plan: Callable[..., RoundPlan],
        start: tuple[Path, str],
        tmp_path: Path,
        shared_cache: Path,
    ) -> None:
        from zk0.client.client import Client

        settings = ClientSettings(name="a", dataset=f"local:{recordings['a']}")
        client = Client(
            settings, terms, tmp_path / "scratch", shared_cache, tmp_path / video_folder if video_folder else None
        )
        shared = plan().model_dump(include=EvaluationPlan.model_fields.keys() - {"round"})
        evaluation_plan = EvaluationPlan(**shared, round=0, times=2, batch_size=8, every_frames=1, video=PLAN)
        found = client.evaluate(evaluation_plan, start[0])
        (video,) = render_held_out_videos(client, evaluation_plan, start[0], found.score)
        assert (video.client, video.episode, video.policy_loss) == ("a", 2, found.score.episodes[0].policy_loss)
        base = tmp_path / (video_folder or "scratch")
        assert (base / "evaluate/round_0/a/rollout_20260102_030405.mp4").is_file()
        assert (
            render_held_out_videos(client, evaluation_plan.model_copy(update={"video": None}), start[0], found.score)
            == ()
        )

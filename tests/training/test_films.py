"""Films of judging episodes: what is drawn is what was recorded and what the policy predicts."""

import json
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import imageio.v2 as imageio
import numpy as np
import pytest

from zk0.records import EpisodeFilm, SetScore, Statistics
from zk0.results import read_films
from zk0.robot.dataset import EpisodeReader
from zk0.session import SO101_JOINTS, ClientSettings, EvaluationPlan, FilmPlan, RoundPlan, Terms
from zk0.training.evaluate import score
from zk0.training.examples import CachedExamples
from zk0.training.features import FeatureCache
from zk0.training.films import Studio, film_held_out

PLAN = FilmPlan(episodes=2, camera_height=96, when=datetime(2026, 1, 2, 3, 4, 5))


@pytest.fixture
def studio(policy: Any, statistics: Statistics, recordings: dict[str, Path], kept: Path) -> Studio:
    from zk0.robot.policy import make_processors

    pre, _ = make_processors(policy, statistics)
    cache = FeatureCache(kept / "features", policy, ("overhead", "wrist"))
    reader = EpisodeReader(recordings["judge"])
    examples = CachedExamples(reader, (0, 1, 2), policy, pre, cache)
    return Studio(policy, examples, reader, statistics, PLAN, (7, 3), SO101_JOINTS)


def judged(studio: Studio) -> SetScore:
    return score(studio.policy, studio.examples, studio.statistics, dataset="local:judge", seed=7, times=3)


def film(studio: Studio, folder: Path, found: SetScore) -> tuple[EpisodeFilm, ...]:
    return studio.film(found, (4, "c" * 64), None, folder, folder / "evaluate")


def test_the_first_episodes_are_filmed_once_at_the_rate_of_the_data(studio: Studio, tmp_path: Path) -> None:
    found = judged(studio)
    films = film(studio, tmp_path, found)
    assert [(f.episode, f.video_fault) for f in films] == [(0, None), (1, None)]
    assert [f.policy_loss for f in films] == [e.policy_loss for e in found.episodes[:2]]
    assert [f.duration_seconds for f in films] == [1.3, 1.2]
    first = tmp_path / str(films[0].video)
    assert first.name == "rollout_20260102_030405.mp4"
    with imageio.get_reader(first) as reader:
        assert reader.count_frames() == 13
        assert reader.get_meta_data()["fps"] == 10
    said = json.loads(first.with_suffix(".json").read_text())
    assert (said["kind"], said["success"], said["round"]) == ("open-loop", None, 4)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    assert film(studio, tmp_path, found) == films == tuple(read_films(tmp_path))
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == before


def test_what_is_drawn_is_what_was_measured(studio: Studio) -> None:
    """The mean error of the predicted chunks is the action error of the evaluation."""
    found = judged(studio)
    for episode, measured in zip(studio.reader.read([0, 1, 2]), found.episodes, strict=True):
        drawn = studio._prediction(episode, "")
        assert drawn.images["overhead"][0].shape == (64, 64, 3)
        errors = [
            np.abs(chunk[: len(drawn.recorded) - t] - drawn.recorded[t : t + len(chunk)])
            for t, chunk in enumerate(drawn.predicted)
        ]
        assert np.concatenate(errors).mean() == pytest.approx(measured.action_error_degrees, rel=1e-5)
        assert sum(len(e) for e in errors) == measured.actions


def test_a_film_that_cannot_be_made_is_told(
    studio: Studio, recordings: dict[str, Path], tmp_path: Path, record: Callable[..., Path]
) -> None:
    root = record(tmp_path / "copy", 3, (13, 12, 17))
    found = judged(studio)
    for video in (root / "videos").rglob("*.mp4"):
        video.write_bytes(b"no film")
    broken = Studio(
        studio.policy, studio.examples, EpisodeReader(root), studio.statistics, PLAN, (7, 3), SO101_JOINTS
    )  # fmt: skip
    films = film(broken, tmp_path, found)
    assert [f.video for f in films] == [None, None]
    assert all("cannot be decoded" in str(f.video_fault) for f in films)
    assert list((tmp_path / "evaluate").glob("*.mp4")) == []


class TestClient:
    @pytest.mark.parametrize("films", [None, "session"])
    def test_films_of_held_out_episodes_stay_where_the_client_says(
        self,
        films: str | None,
        recordings: dict[str, Path],
        terms: Terms,
        plan: Callable[..., RoundPlan],
        start: tuple[Path, str],
        tmp_path: Path,
        kept: Path,
    ) -> None:
        from zk0.training.client import Client

        settings = ClientSettings(name="a", dataset=f"local:{recordings['a']}")
        client = Client(settings, terms, tmp_path / "scratch", kept, tmp_path / films if films else None)
        shared = plan().model_dump(exclude={"lr", "mu", "scheduler", "round", "control"})
        asked = EvaluationPlan(**shared, round=0, times=2, batch_size=8, every_frames=1, film=PLAN)
        found = client.evaluate(asked, start[0])
        (made,) = film_held_out(client, asked, start[0], found.score)
        assert (made.client, made.episode, made.policy_loss) == ("a", 2, found.score.episodes[0].policy_loss)
        base = tmp_path / (films or "scratch")
        assert (base / "evaluate/round_0/a/rollout_20260102_030405.mp4").is_file()
        assert film_held_out(client, asked.model_copy(update={"film": None}), start[0], found.score) == ()

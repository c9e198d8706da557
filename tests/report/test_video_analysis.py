"""Films measured in their pictures: motion that is known is found, and rounds stand side by side."""

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from zk0.errors import ReportError
from zk0.records import EpisodeFilm, Rollout
from zk0.report.video import write_video
from zk0.report.video_analysis import analyse_videos, flow_speeds, read_video, side_by_side

RNG = np.random.default_rng(0)
TEXTURE = np.kron(RNG.integers(0, 255, (40, 80, 3), dtype=np.uint8), np.ones((8, 8, 1), np.uint8))


def moving(offsets: list[int]) -> list[np.ndarray]:
    """Pictures (120, 240, 3) of a texture that is moved sideways by so many pixels."""
    return [TEXTURE[20:140, 20 + o : 260 + o] for o in offsets]


def test_a_known_motion_is_measured() -> None:
    speeds = flow_speeds(moving([0, 2, 4, 6, 6, 6]))
    assert speeds[:3] == pytest.approx([2, 2, 2], abs=0.5)
    assert speeds[3:] == pytest.approx([0, 0], abs=0.05)


def film(folder: Path, stem: str, said: Rollout | EpisodeFilm, offsets: list[int]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"rollout_{stem}.mp4"
    # what is drawn around the cameras changes wildly; only the cameras' rows count
    pictures = enumerate(moving(offsets))
    drawn = [np.pad(p, ((30, 34), (0, 0), (0, 0)), constant_values=(40 * i) % 256) for i, p in pictures]
    write_video(path, drawn, 10)
    said = said.model_copy(update={"video": path.name, "camera_rows": (30, 150)})
    path.with_suffix(".json").write_text(said.model_dump_json())


SMOOTH = [round(60 * (t - np.sin(2 * np.pi * t) / (2 * np.pi))) for t in np.linspace(0, 1, 31)]
JERKY = [SMOOTH[i - i % 6] for i in range(31)]


@pytest.fixture
def films(tmp_path: Path) -> Path:
    shared = {
        "conditions": "c",
        "task": "lift-red",
        "client": "lifts",
        "seed": 3,
        "steps": 30,
        "duration_seconds": 3.0,
        "fps": 10,
    }
    first = Rollout(round=0, checkpoint="a", success=False, smoothness=-3.0, **shared)
    last = Rollout(round=2, checkpoint="b", success=True, smoothness=-2.0, **shared)
    film(tmp_path / "round_0/lifts", "20260101_000000", first, JERKY)
    film(tmp_path / "round_2/lifts", "20260101_000001", last, SMOOTH[:20])
    episode = EpisodeFilm(
        round=2, checkpoint="b", dataset="sim:place", client=None, episode=7, duration_seconds=3.1, fps=10,
        policy_loss=0.5, action_error_degrees=3.0,
    )  # fmt: skip
    film(tmp_path / "round_2/place", "20260101_000002", episode, SMOOTH)
    return tmp_path


def test_every_film_is_measured_and_rounds_stand_side_by_side(films: Path) -> None:
    found = analyse_videos(films)
    assert json.loads((films / "video_analysis.json").read_text()) == json.loads(found.model_dump_json())
    by_name = {(f.what, f.round): f for f in found.films}
    jerky, smooth = by_name["lift-red", 0], by_name["sim:place", 2]
    assert smooth.flow_pixels_per_frame == pytest.approx(2, abs=0.5)  # 60 pixels in 30 steps
    assert smooth.flow_smoothness > jerky.flow_smoothness
    assert (smooth.success, smooth.policy_loss, smooth.frames, smooth.number) == (None, 0.5, 31, 7)
    assert [(r.round, r.films, r.attempts, r.successes) for r in found.rounds] == [(0, 1, 1, 0), (2, 2, 1, 1)]
    assert found.side_by_side == ("side_by_side/lifts_closed-loop_3.mp4",)
    both = read_video(films / found.side_by_side[0])
    assert len(both) == 31
    assert both[0].shape[1] >= 2 * 240
    assert np.abs(both[-1].astype(int) - both[20].astype(int))[60:180, 250:480].mean() < 3  # the shorter one stands


def test_one_film_after_the_other_is_over_stands_still() -> None:
    one, other = moving([0, 5, 10]), moving([0])
    frames = list(side_by_side([("round 0", one), ("round 1", other)]))
    assert len(frames) == 3
    np.testing.assert_array_equal(frames[2][36:, 248:488], other[0])


def test_the_command_writes_and_says_it(films: Path) -> None:
    from flows.cli import app

    done = CliRunner().invoke(app, ["videos", "analyse", str(films)])
    assert done.exit_code == 0, done.output
    assert "1 of 1" in done.output
    nothing = CliRunner().invoke(app, ["videos", "analyse", str(films / "nowhere")])
    assert nothing.exit_code == 1
    assert "no film" in nothing.output


def test_a_film_that_cannot_be_read_is_named(films: Path) -> None:
    (films / "round_0/lifts/rollout_20260101_000000.mp4").write_bytes(b"no film")
    with pytest.raises(ReportError, match=r"rollout_20260101_000000.mp4: cannot be read"):
        analyse_videos(films)

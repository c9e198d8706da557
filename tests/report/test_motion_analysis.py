"""Motion analysis of videos with known motion, and side-by-side videos of several rounds."""

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from zk0.errors import ReportError
from zk0.records import EpisodeVideo, Rollout
from zk0.report.video.decoder import read_video_frames
from zk0.report.video.encoder import write_video
from zk0.report.video.motion_analysis import analyze_videos, optical_flow_speeds
from zk0.report.video.side_by_side import side_by_side_frames

RNG = np.random.default_rng(0)
TEXTURE = np.kron(RNG.integers(0, 255, (40, 80, 3), dtype=np.uint8), np.ones((8, 8, 1), np.uint8))


def moving(offsets: list[int]) -> list[np.ndarray]:
    """Images (120, 240, 3) of a texture that is shifted sideways by these numbers of pixels."""
    return [TEXTURE[20:140, 20 + o : 260 + o] for o in offsets]


def test_a_known_motion_is_measured() -> None:
    speeds = optical_flow_speeds(moving([0, 2, 4, 6, 6, 6]))
    assert speeds[:3] == pytest.approx([2, 2, 2], abs=0.5)
    assert speeds[3:] == pytest.approx([0, 0], abs=0.05)


def write_result(folder: Path, stem: str, result: Rollout | EpisodeVideo, offsets: list[int]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"rollout_{stem}.mp4"
    # the drawn rows around the camera images change in every frame; only the rows of the cameras are analyzed
    images = enumerate(moving(offsets))
    drawn = [np.pad(p, ((30, 34), (0, 0), (0, 0)), constant_values=(40 * i) % 256) for i, p in images]
    write_video(path, lambda: drawn, 10)
    result = result.model_copy(update={"video": path.name, "camera_rows": (30, 150)})
    path.with_suffix(".json").write_text(result.model_dump_json())


SMOOTH = [round(60 * (t - np.sin(2 * np.pi * t) / (2 * np.pi))) for t in np.linspace(0, 1, 31)]
JERKY = [SMOOTH[i - i % 6] for i in range(31)]


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    shared = {
        "conditions_digest": "c",
        "task": "lift-red",
        "client": "lifts",
        "seed": 3,
        "steps": 30,
        "duration_seconds": 3.0,
        "fps": 10,
    }
    first = Rollout(round=0, checkpoint="a", success=False, smoothness=-3.0, **shared)
    last = Rollout(round=2, checkpoint="b", success=True, smoothness=-2.0, **shared)
    write_result(tmp_path / "round_0/lifts", "20260101_000000", first, JERKY)
    write_result(tmp_path / "round_2/lifts", "20260101_000001", last, SMOOTH[:20])
    episode = EpisodeVideo(
        round=2, checkpoint="b", dataset="sim:place", client=None, episode=7, duration_seconds=3.1, fps=10,
        policy_loss=0.5, action_error_degrees=3.0,
    )  # fmt: skip
    write_result(tmp_path / "round_2/place", "20260101_000002", episode, SMOOTH)
    return tmp_path


def test_every_video_is_analyzed_and_rounds_are_side_by_side(videos: Path) -> None:
    found = analyze_videos(videos)
    assert json.loads((videos / "video_analysis.json").read_text()) == json.loads(found.model_dump_json())
    by_name = {(f.subject, f.round): f for f in found.videos}
    jerky, smooth = by_name["lift-red", 0], by_name["sim:place", 2]
    assert smooth.flow_pixels_per_frame == pytest.approx(2, abs=0.5)  # 60 pixels in 30 steps
    assert smooth.flow_smoothness > jerky.flow_smoothness
    assert (smooth.success, smooth.policy_loss, smooth.frames, smooth.number) == (None, 0.5, 31, 7)
    assert [(r.round, r.videos, r.attempts, r.successes) for r in found.rounds] == [(0, 1, 1, 0), (2, 2, 1, 1)]
    assert found.side_by_side == ("side_by_side/lifts_closed-loop_3.mp4",)
    both = read_video_frames(videos / found.side_by_side[0])
    assert len(both) == 31
    assert both[0].shape[1] >= 2 * 240
    assert (
        np.abs(both[-1].astype(int) - both[20].astype(int))[60:180, 250:480].mean() < 3
    )  # the shorter one repeats its last frame


def test_the_shorter_video_repeats_its_last_frame() -> None:
    one, other = moving([0, 5, 10]), moving([0])
    frames = list(side_by_side_frames([("round 0", one), ("round 1", other)]))
    assert len(frames) == 3
    np.testing.assert_array_equal(frames[2][36:, 248:488], other[0])


def test_zk0_videos_analyse(videos: Path) -> None:
    from flows.cli.main import zk0_app

    done = CliRunner().invoke(zk0_app, ["videos", "analyse", str(videos)])
    assert done.exit_code == 0, done.output
    assert "1 of 1" in done.output
    failed = CliRunner().invoke(zk0_app, ["videos", "analyse", str(videos / "nowhere")])
    assert failed.exit_code == 1
    assert "no video" in failed.output


def test_a_video_that_cannot_be_read_is_named(videos: Path) -> None:
    (videos / "round_0/lifts/rollout_20260101_000000.mp4").write_bytes(b"not a video")
    with pytest.raises(ReportError, match=r"rollout_20260101_000000.mp4: cannot be read"):
        analyze_videos(videos)


def test_a_session_measures_its_videos(videos: Path, tmp_path: Path, log_lines: list[str]) -> None:
    """The task without Prefect: videos of the folder `evaluate`, none, and one that cannot be read."""
    from tasks import reporting

    folder = tmp_path / "session"
    (folder / "evaluate").mkdir(parents=True)
    reporting.write_video_analysis.fn(str(folder))
    assert log_lines == []
    for part in [p for p in videos.iterdir() if p.name.startswith("round_")]:
        part.rename(folder / "evaluate" / part.name)
    reporting.write_video_analysis.fn(str(folder))
    found = json.loads((folder / "evaluate" / "video_analysis.json").read_text())
    assert [one["round"] for one in found["rounds"]] == [0, 2]
    assert log_lines[-1].startswith(f"motion of {len(found['videos'])} videos measured, 1 videos side by side")
    next((folder / "evaluate").rglob("rollout_*.mp4")).write_bytes(b"no video")
    reporting.write_video_analysis.fn(str(folder))
    assert log_lines[-1].startswith("no analysis of the videos: ")

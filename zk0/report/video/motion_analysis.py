"""Motion in the videos of a session, measured by optical flow: its amount and its smoothness."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np

from zk0.errors import ReportError
from zk0.records import EpisodeVideo, Rollout
from zk0.report.video.canvas import Frame
from zk0.report.video.decoder import read_video_frames
from zk0.report.video.motion_records import FLOW_HEIGHT, MotionAnalysis, RoundMotion, VideoMotion
from zk0.report.video.side_by_side import write_side_by_side_videos
from zk0.stats.intervals import wilson_interval
from zk0.stats.smoothness import spectral_arc_length
from zk0.storage.atomic import atomic_write_bytes
from zk0.storage.results import read_result, result_files

ANALYSIS_FILE = "video_analysis.json"


def analyze_videos(folder: Path) -> MotionAnalysis:
    """Analyze all videos below a folder, and write video_analysis.json and the side-by-side videos.

    Raises:
        ReportError: there is no video, a video cannot be read, or a file cannot be written.
        EvaluationError: the result of a video cannot be read.
    """
    results = [(path, read_result(path)) for path in sorted(result_files(folder, ".json"))]
    with_video = [(path.with_suffix(".mp4"), result) for path, result in results if result.video]
    if not with_video:
        raise ReportError(f"{folder}: no video of an attempt or an episode; expected rollout_*.mp4 with its .json")
    videos = tuple(_video_motion(path, result, folder) for path, result in with_video)
    rounds = dict.fromkeys(v.round for v in sorted(videos, key=lambda v: -1 if v.round is None else v.round))
    analysis = MotionAnalysis(
        rounds=tuple(_round_motion(number, [v for v in videos if v.round == number]) for number in rounds),
        videos=videos,
        side_by_side=tuple(write_side_by_side_videos(videos, folder)),
    )
    text = analysis.model_dump_json(indent=2) + "\n"
    atomic_write_bytes(folder / ANALYSIS_FILE, text.encode(), durable=False, error=ReportError)
    return analysis


def has_videos(folder: Path) -> bool:
    """Whether there is a video of an attempt or of an episode below a folder."""
    return next(result_files(folder, ".mp4"), None) is not None


def optical_flow_speeds(images: Sequence[Frame]) -> list[float]:
    """Mean length of the optical flow from each image to the next, in pixels."""
    gray = [cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) for image in images]
    speeds = []
    for one, other in pairwise(gray):
        flow = cv2.calcOpticalFlowFarneback(one, other, None, 0.5, 3, 15, 3, 5, 1.2, 0)
        speeds.append(float(np.linalg.norm(flow, axis=2).mean()))
    return speeds


def _video_motion(path: Path, result: Rollout | EpisodeVideo, folder: Path) -> VideoMotion:
    rows = result.camera_rows
    images = [_scaled(frame[slice(*rows)] if rows else frame) for frame in read_video_frames(path)]
    speeds = optical_flow_speeds(images)
    if isinstance(result, Rollout):
        subject, number = result.task, result.seed
    else:
        subject, number = result.dataset, result.episode
    return VideoMotion(
        video=str(path.relative_to(folder)),
        kind=result.kind,
        subject=subject,
        client=result.client,
        round=result.round,
        number=number,
        success=result.success,
        duration_seconds=result.duration_seconds,
        frames=len(images),
        policy_loss=result.policy_loss,
        flow_pixels_per_frame=float(np.mean(speeds)) if speeds else None,
        flow_smoothness=spectral_arc_length(np.array(speeds), result.fps),
    )


def _scaled(image: Frame) -> Frame:
    width = round(image.shape[1] * FLOW_HEIGHT / image.shape[0])
    return np.asarray(cv2.resize(image, (width, FLOW_HEIGHT), interpolation=cv2.INTER_AREA), dtype=np.uint8)


def _round_motion(number: int | None, videos: Sequence[VideoMotion]) -> RoundMotion:
    results = [v.success for v in videos if v.success is not None]
    smoothness = [v.flow_smoothness for v in videos if v.flow_smoothness is not None]
    return RoundMotion(
        round=number,
        videos=len(videos),
        attempts=len(results),
        successes=sum(results),
        success_interval=wilson_interval(sum(results), len(results)) if results else None,
        mean_duration_seconds=float(np.mean([v.duration_seconds for v in videos])),
        mean_flow_smoothness=float(np.mean(smoothness)) if smoothness else None,
    )

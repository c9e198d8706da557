"""Videos of the same attempt or episode in several rounds, side by side."""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from zk0.report.video.canvas import GAP, Frame, add_title_bar
from zk0.report.video.decoder import read_frame_rate, read_video_frames
from zk0.report.video.encoder import write_video
from zk0.report.video.motion_records import VideoMotion


def write_side_by_side_videos(videos: Sequence[VideoMotion], folder: Path) -> Iterator[str]:
    """Write one video into `folder/side_by_side` for each attempt or episode with videos of several rounds.

    Yields:
        The path of each written video, relative to the folder.

    Raises:
        ReportError: a video cannot be read or written.
    """
    subjects: dict[tuple[str, str, str | None, int], list[VideoMotion]] = {}
    for video in videos:
        subjects.setdefault((video.kind, video.subject, video.client, video.number), []).append(video)
    for (kind, subject, client, number), of_subject in subjects.items():
        by_round = {v.round: v for v in sorted(of_subject, key=lambda v: (v.round is None, v.round))}
        if len(by_round) < 2:
            continue
        text = f"{client or subject.split(':')[-1]}_{kind}_{number}"
        name = "".join(c if c.isalnum() or c in "-_" else "-" for c in text)
        target = folder / "side_by_side" / f"{name}.mp4"
        paths = {f"round {round_number}": folder / v.video for round_number, v in by_round.items()}
        shown = [(title, read_video_frames(path)) for title, path in paths.items()]
        write_video(target, partial(side_by_side_frames, shown), read_frame_rate(next(iter(paths.values()))))
        yield str(target.relative_to(folder))


def side_by_side_frames(videos: Sequence[tuple[str, Sequence[Frame]]]) -> Iterator[Frame]:
    """Frames of several videos, each under its title; a shorter video repeats its last frame."""
    height = max(frames[0].shape[0] for _, frames in videos)
    for now in range(max(len(frames) for _, frames in videos)):
        parts = []
        for title, frames in videos:
            frame = frames[min(now, len(frames) - 1)]
            parts.append(add_title_bar(np.pad(frame, ((0, height - frame.shape[0]), (0, GAP), (0, 0))), title))
        yield np.concatenate(parts, axis=1)

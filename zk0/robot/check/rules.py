"""First rules."""

from collections.abc import Iterator

import numpy as np

from zk0.records import Finding
from zk0.robot.check.contents import Contents

TOLERANCE_SECONDS = 1e-4


def format_version(contents: Contents) -> Iterator[Finding]:
    """LeRobot 0.6 reads v3.0 only."""
    if contents.info and not contents.info.is_v3:
        version = contents.info.codebase_version
        convertible = version in ("v2.0", "v2.1")
        yield Finding(
            rule="format-version",
            where="meta/info.json codebase_version",
            found=version,
            expected="v3.0",
            repair="convert-to-v3" if convertible else None,
        )


def doubled_rows(contents: Contents) -> Iterator[Finding]:
    """A frame of an episode stored more than once (LeRobot issue 1875); LeRobot loads it without a word."""
    episode, frame = contents.episode_index, contents.frame_index
    if episode is None or frame is None or not len(episode):
        return
    unique = len(np.unique(np.stack([episode, frame]), axis=1).T)
    if unique < len(episode):
        yield Finding(
            rule="doubled-rows",
            where="data",
            found=f"{len(episode)} rows for {unique} frames",
            expected="one row for each frame",
            repair="drop-duplicates",
        )


def frame_count(contents: Contents) -> Iterator[Finding]:
    """info.json counts the rows that are there."""
    if contents.info and contents.frames and contents.info.total_frames != contents.rows:
        yield Finding(
            rule="frame-count",
            where="meta/info.json total_frames",
            found=str(contents.info.total_frames),
            expected=f"{contents.rows}, the rows in data",
            repair="recount",
        )


def timestamps(contents: Contents) -> Iterator[Finding]:
    """timestamp == frame_index / fps within 0.1 ms: what LeRobot decodes video by."""
    times, frame = contents.timestamp, contents.frame_index
    if contents.info is None or times is None or frame is None or not len(times):
        return
    drift = np.abs(times - frame / contents.info.fps)
    bad = ~(drift <= TOLERANCE_SECONDS)
    if bad.any():
        yield Finding(
            rule="timestamps",
            where="data timestamp",
            found=f"{int(bad.sum())} of {len(times)} rows up to {np.nanmax(drift):.4g} s off",
            expected=f"frame_index / {contents.info.fps:g} within {TOLERANCE_SECONDS:g} s",
            repair="regularise-timestamps",
        )


def not_finite(contents: Contents) -> Iterator[Finding]:
    """States and actions are numbers."""
    for name in ("state", "action"):
        values = getattr(contents, name)
        if values is not None and (bad := int((~np.isfinite(values)).sum())):
            yield Finding(
                rule="not-finite",
                where=f"data {name}",
                found=f"{bad} values that are NaN or infinite",
                expected="finite numbers",
                repair="drop-episodes",
            )


RULES = (format_version, frame_count, doubled_rows, timestamps, not_finite)

"""meta/info.json and meta/stats.json of a repaired copy."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zk0.robot.check.contents import Contents
from zk0.robot.check.format import DEFAULT_FEATURES
from zk0.robot.info import INFO_PATH
from zk0.robot.repair_plan import Plan
from zk0.robot.repair_statistics import (
    number_statistics,
    picture_statistics,
    stored_pictures,
    video_pictures,
    well_formed_picture_statistics,
)

FILES_PER_CHUNK = 1000
DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"


def copy_info(contents: Contents, plan: Plan, lengths: Sequence[int], tasks: int) -> dict[str, Any]:
    """info.json of the copy: what the original says, with what was wrong set right."""
    raw: dict[str, Any] = contents.folder.json(INFO_PATH)
    assert contents.info is not None
    features = {}
    for key, feature in raw["features"].items():
        features[plan.renames.get(key, key)] = _feature(key, dict(feature), contents)
    for key, dtype in DEFAULT_FEATURES.items():
        features[key] = {**features.get(key, {"names": None}), "dtype": dtype, "shape": [1]}
    for gone in ("total_chunks", "total_videos"):
        raw.pop(gone, None)
    defaults = {"chunks_size": FILES_PER_CHUNK, "data_files_size_in_mb": 100, "video_files_size_in_mb": 200}
    return {
        **defaults,
        **raw,
        "codebase_version": "v3.0",
        "chunks_size": FILES_PER_CHUNK,
        "features": features,
        "total_episodes": len(lengths),
        "total_frames": sum(lengths),
        "total_tasks": tasks,
        "data_path": DATA_PATH,
        "video_path": VIDEO_PATH if contents.info.video_keys else None,
        "splits": {"train": f"0:{len(lengths)}"},
    }


def _feature(key: str, feature: dict[str, Any], contents: Contents) -> dict[str, Any]:
    assert contents.info is not None
    if "video_info" in feature:
        feature.setdefault("info", feature.pop("video_info"))
    if key not in contents.info.cameras:
        names = contents.info.features[key].flat_names
        if any(n in contents.given_renames for n in names):
            feature["names"] = [contents.given_renames.get(n, n) for n in names]
        return feature
    named = {e.clips[key].file for e in contents.episodes or () if key in e.clips}
    sizes = {(v.height, v.width) for v in contents.videos if v.file in named}
    shape = contents.info.features[key].shape
    if len(sizes) == 1:
        feature["shape"] = [*sizes.pop(), 3]
    elif len(shape) == 3 and shape[0] == 3:
        feature["shape"] = [*shape[1:], 3]
    feature["names"] = ["height", "width", "channels"]
    return feature


def copy_statistics(
    contents: Contents, plan: Plan, numbers: Mapping[str, Sequence[NDArray[Any]]], videos: Sequence[tuple[str, str]]
) -> dict[str, Any]:
    """stats.json of the copy: moments of its frames; those of pictures stay if the pictures are still the same ones.

    `numbers` holds the values of each column by episode, `videos` the (camera, file) pairs of the original in use.
    """
    stated = contents.statistics or {}
    result: dict[str, Any] = {
        column: number_statistics(np.concatenate(parts)) for column, parts in sorted(numbers.items())
    }
    for key in contents.info.cameras if contents.info else ():
        name = plan.renames.get(key, key)
        if not plan.dropped and well_formed_picture_statistics(stated.get(key)):
            result[name] = stated[key]
            continue
        files = [file for camera, file in videos if camera == key]
        tables = [t.file for t in contents.frames if key in t.types]
        rows = sum(t.rows for t in contents.frames)
        pictures = (
            video_pictures(contents.folder, files) if files else stored_pictures(contents.folder, tables, key, rows)
        )
        if (moments := picture_statistics(pictures)) is not None:
            result[name] = moments
    return result

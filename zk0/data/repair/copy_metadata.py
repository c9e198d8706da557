"""The metadata of a repaired copy: meta/info.json and meta/stats.json."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zk0.data.check.contents import Contents
from zk0.data.dataset_info import DEFAULT_FEATURES, INFO_PATH
from zk0.data.repair.recompute_statistics import (
    are_image_statistics,
    column_statistics,
    image_statistics,
    stored_images,
    video_images,
)
from zk0.data.repair.repair_plan import RepairPlan

FILES_PER_CHUNK = 1000
DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"


def copy_info(contents: Contents, plan: RepairPlan, lengths: Sequence[int], tasks: int) -> dict[str, Any]:
    """Return meta/info.json of the copy: that of the original with corrected values.

    Args:
        contents: the original.
        plan: what the copy contains.
        lengths: frames of each episode of the copy.
        tasks: number of tasks of the copy.
    """
    raw: dict[str, Any] = contents.folder.read_json(INFO_PATH)
    assert contents.info is not None
    features = {}
    for key, feature in raw["features"].items():
        if key in contents.absent_cameras:
            continue
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
        "fps": raw["fps"] if contents.fps == contents.info.fps else _whole(contents.fps),
        "total_episodes": len(lengths),
        "total_frames": sum(lengths),
        "total_tasks": tasks,
        "data_path": DATA_PATH,
        "video_path": VIDEO_PATH if contents.info.video_keys else None,
        "splits": {"train": f"0:{len(lengths)}"},
    }


def _whole(rate: float) -> float:
    return int(rate) if rate == int(rate) else rate


def _feature(key: str, feature: dict[str, Any], contents: Contents) -> dict[str, Any]:
    """Return the corrected declaration of one feature."""
    assert contents.info is not None
    if "video_info" in feature:
        feature.setdefault("info", feature.pop("video_info"))
    if key not in contents.info.cameras:
        names = contents.info.features[key].flat_names
        if any(n in contents.given_renames for n in names):
            feature["names"] = [contents.given_renames.get(n, n) for n in names]
        return feature
    sizes = {(v.height, v.width) for v in contents.videos_of(key).values()}
    shape = contents.info.features[key].shape
    if len(sizes) == 1:
        feature["shape"] = [*sizes.pop(), 3]
    elif len(shape) == 3 and shape[0] == 3:
        feature["shape"] = [*shape[1:], 3]
    feature["names"] = ["height", "width", "channels"]
    return feature


def copy_statistics(
    contents: Contents,
    plan: RepairPlan,
    values: Mapping[str, Sequence[NDArray[Any]]],
    videos: Sequence[tuple[str, str]],
) -> dict[str, Any]:
    """Return meta/stats.json of the copy: statistics of its columns and images.

    Image statistics of the original are copied if they are well formed and no episode is dropped.

    Args:
        contents: the original.
        plan: what the copy contains.
        values: column -> its values (frames, dims) of each episode.
        videos: (camera, file) pairs of the original that the copy uses.
    """
    stated = contents.statistics or {}
    result: dict[str, Any] = {
        column: column_statistics(np.concatenate(parts)) for column, parts in sorted(values.items())
    }
    for key in contents.info.cameras if contents.info else ():
        name = plan.renames.get(key, key)
        if key in contents.absent_cameras:
            continue
        if not plan.dropped and are_image_statistics(stated.get(key)):
            result[name] = stated[key]
            continue
        files = [file for camera, file in videos if camera == key]
        tables = [t.file for t in contents.frame_tables if key in t.types]
        rows = sum(t.rows for t in contents.frame_tables)
        images = video_images(contents.folder, files) if files else stored_images(contents.folder, tables, key, rows)
        if (moments := image_statistics(images)) is not None:
            result[name] = moments
    return result

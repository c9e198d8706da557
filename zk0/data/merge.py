"""Merge datasets of one robot into a new one: their checks first, then how they differ, then LeRobot's aggregation."""

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from zk0.data.check import check_dataset
from zk0.data.check.contents import STATISTICS_PATH
from zk0.data.dataset_folder import list_folder
from zk0.data.dataset_info import DEFAULT_FEATURES, INFO_PATH, DatasetInfo, Feature, read_dataset_info
from zk0.data.episode_digests import dataset_digests
from zk0.data.episode_table import EPISODES_DIR
from zk0.data.frame_progress import FrameProgress, no_progress
from zk0.data.split import find_overlap
from zk0.errors import DatasetError
from zk0.records import ACTION, STATE, DatasetReport, Record
from zk0.storage.atomic import atomic_folder

_VERSION = "v3.0"
_FEATURE_COLUMNS = ("stats/", "videos/")
"""Prefixes of the episode table's columns about one feature: PREFIX/FEATURE/PROPERTY."""


class MergedDataset(Record):
    """What a merge wrote."""

    report: DatasetReport
    """The check of the merged dataset."""
    left_out: Mapping[str, tuple[str, ...]]
    """Feature key -> the datasets that have it; not all do, or not in the same form."""


def merge_datasets(
    roots: Mapping[str, Path], target: Path, *, robot_type: str | None = None, progress: FrameProgress = no_progress
) -> MergedDataset:
    """Write the episodes of all datasets, in their order, as one LeRobot dataset, and return its check.

    Features that not all datasets have in the same form, such as LeRobot's `intervention`, are left out. Cameras, state
    and action must agree. Videos are copied without encoding them again.

    Args:
        roots: name of each dataset -> its folder; nothing is written there.
        target: a folder that does not exist yet; it is complete or absent.
        robot_type: `robot_type` of the merged dataset; None: that of all datasets, which must then be the same.
        progress: called after each frame that is decoded.

    Raises:
        DatasetError: a dataset does not pass the check, two of them do not fit together (all faults at once), or
            `target` exists.
    """
    if target.exists():
        raise DatasetError(f"{target}: exists already; choose a new folder")
    if len(roots) < 2:
        raise DatasetError(f"found {len(roots)} dataset, expected at least two different ones to merge")
    reports = {name: check_dataset(root, dataset=name, progress=progress) for name, root in roots.items()}
    if faults := [f"{name}: {finding}" for name, report in reports.items() for finding in report.errors]:
        raise DatasetError("; ".join(faults) + "; zk0 data repair writes copies without the errors that it can repair")
    infos = {name: read_dataset_info(list_folder(root)) for name, root in roots.items()}
    if faults := [*_differences(reports, infos, robot_type), *_shared_episodes(roots)]:
        raise DatasetError("; ".join(faults))
    left_out = _left_out(infos)
    with TemporaryDirectory(prefix="zk0-merge-") as folder, atomic_folder(target) as temporary:
        raw = json.loads((next(iter(roots.values())) / INFO_PATH).read_text(encoding="utf-8"))
        header = {
            "robot_type": robot_type or raw.get("robot_type"),
            "features": {key: feature for key, feature in raw["features"].items() if key not in left_out},
        }
        staged = [Path(folder, str(number)) for number in range(len(roots))]
        for root, stage in zip(roots.values(), staged, strict=True):
            _stage(root, stage, header, frozenset(left_out))
        _aggregate(staged, temporary)
        report = check_dataset(temporary, dataset=str(target), progress=progress)
        expected = sum(found.episodes or 0 for found in reports.values())
        if report.errors or report.episodes != expected:
            errors = "; ".join(map(str, report.errors)) or "no error"
            raise DatasetError(f"the merged dataset has {report.episodes} of {expected} episodes and {errors}")
    return MergedDataset(report=report.model_copy(update={"root": str(target.resolve())}), left_out=left_out)


def _differences(
    reports: Mapping[str, DatasetReport], infos: Mapping[str, DatasetInfo], robot_type: str | None
) -> Iterator[str]:
    """Yield how each dataset differs from the first in what must be the same."""
    first = next(iter(reports))
    for name, info in infos.items():
        if info.codebase_version != _VERSION:
            yield f"{name}: found version {info.codebase_version}, expected {_VERSION}; convert it with zk0 data repair"
    for name in list(reports)[1:]:
        for what, advice in _MUST_AGREE.items():
            one, other = (_property(what, reports[key], infos[key]) for key in (first, name))
            if one != other and not (what == "units" and None in (one, other)):
                yield f"{what}: {first} has {_text(one)}, {name} has {_text(other)}; {advice}"
    words = {name: report.robot_type for name, report in reports.items()}
    if robot_type is None and len(set(words.values())) > 1:
        found = ", ".join(f"{name} has {_text(word)}" for name, word in words.items())
        yield f"robot_type: {found}; if all are of the same kind of arm, give its word with --robot-type"


_MUST_AGREE = {
    "fps": "record at the same rate",
    "cameras": "rename cameras with zk0 data repair DATASET FOLDER --rename OLD=NEW, or record with the same size",
    STATE: "rename joints with zk0 data repair DATASET FOLDER --rename OLD=NEW",
    ACTION: "rename joints with zk0 data repair DATASET FOLDER --rename OLD=NEW",
    "units": "convert to degrees with zk0 data repair",
}
"""What all datasets must have alike -> what to do where they do not."""


def _property(what: str, report: DatasetReport, info: DatasetInfo) -> Any:
    if what == "fps":
        return report.fps
    if what == "units":
        return report.units
    keys = info.cameras if what == "cameras" else (what,)
    return {key: _stated(info, key) for key in keys if key in info.features}


def _stated(info: DatasetInfo, key: str) -> Any:
    return _form(info.features[key]) if key in info.features else None


def _form(feature: Feature) -> tuple[str, tuple[int, ...], tuple[str, ...]]:
    """Return what two declarations of a feature must have in common; the order of names counts for joints alone."""
    names = () if feature.dtype in ("video", "image") else feature.flat_names
    return feature.dtype, feature.shape, names


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(
            f"{key} ({dtype} {' x '.join(map(str, shape))}{': ' if names else ''}{', '.join(names)})"
            for key, (dtype, shape, names) in value.items()
        )
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _shared_episodes(roots: Mapping[str, Path]) -> Iterator[str]:
    overlaps = find_overlap({name: list(dataset_digests(root).values()) for name, root in roots.items()})
    yield from (f"{overlap}; expected each episode once" for overlap in overlaps)


def _left_out(infos: Mapping[str, DatasetInfo]) -> dict[str, tuple[str, ...]]:
    """Return the features that not all datasets have in the same form, and who has them."""
    first = next(iter(infos.values()))
    keys = dict.fromkeys(key for info in infos.values() for key in info.features if key not in DEFAULT_FEATURES)
    return {
        key: tuple(name for name, info in infos.items() if key in info.features)
        for key in keys
        if any(_stated(info, key) != _stated(first, key) for info in infos.values())
    }


def _stage(root: Path, stage: Path, header: Mapping[str, Any], left_out: frozenset[str]) -> None:
    """Make a folder that LeRobot reads as the dataset with this header and without some features.

    Videos are links; tables are links, too, where they have none of the features.
    """
    source = root.resolve()
    for file in list_folder(source).sizes:
        place = stage / file
        place.parent.mkdir(parents=True, exist_ok=True)
        if file == INFO_PATH:
            place.write_text(json.dumps(json.loads((source / file).read_text(encoding="utf-8")) | header))
        elif file == STATISTICS_PATH:
            stated = json.loads((source / file).read_text(encoding="utf-8"))
            kept = {*header["features"], *DEFAULT_FEATURES}
            place.write_text(json.dumps({key: value for key, value in stated.items() if key in kept}))
        elif not (file.startswith(("data/", f"{EPISODES_DIR}/")) and _write_without(source / file, place, left_out)):
            place.symlink_to(source / file)


def _write_without(file: Path, target: Path, left_out: frozenset[str]) -> bool:
    """Write a table without the columns of some features; False if it has none of them."""
    if file.suffix != ".parquet":
        return False
    names = pq.read_schema(file).names
    gone = {name for name in names if _feature_of(name) in left_out}
    if gone:
        table: pa.Table = pq.read_table(file, columns=[name for name in names if name not in gone])
        pq.write_table(table.replace_schema_metadata(None), target)
    return bool(gone)


def _feature_of(column: str) -> str:
    """Return the feature that a column of the frames or of the episode table is about.

    >>> _feature_of("stats/intervention/mean"), _feature_of("intervention")
    ('intervention', 'intervention')
    """
    for prefix in _FEATURE_COLUMNS:
        if column.startswith(prefix):
            return column.removeprefix(prefix).rpartition("/")[0]
    return column


def _aggregate(staged: list[Path], target: Path) -> None:
    """Run LeRobot's aggregation; each file of a video stays a file, since encoders may differ."""
    from lerobot.datasets.aggregate import aggregate_datasets

    with _quiet_lerobot():
        aggregate_datasets(
            [f"local/{number}" for number in range(len(staged))],
            "local/merged",
            roots=staged,
            aggr_root=target,
            concatenate_videos=False,
        )


@contextmanager
def _quiet_lerobot() -> Iterator[None]:
    """Silence LeRobot's warning that two videos were encoded differently; here that does not matter."""
    logger = logging.getLogger("lerobot.datasets.aggregate")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)

"""The repair of one dataset: check the original, plan, write the copy, check the copy."""

import filecmp
import hashlib
import json
import shutil
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

from zk0.data.check.check_dataset import build_report
from zk0.data.check.contents import Contents, read_contents
from zk0.data.check.observed_frames import ObservedFrames, observe_frames
from zk0.data.dataset_folder import list_folder
from zk0.data.frame_progress import FrameProgress, no_progress
from zk0.data.repair.repair_plan import RepairPlan, plan_repair
from zk0.data.repair.write_copy import write_copy
from zk0.data.video_file import DecodedVideo
from zk0.errors import DatasetError
from zk0.records import DatasetReport, Record
from zk0.storage.atomic import atomic_folder

REPAIR_PATH = "meta/repair.json"


class RepairRecord(Record):
    """What a repair did; the copy stores it as meta/repair.json."""

    source: str
    """SHA-256 over the original's files: names, sizes, and the content of tables and metadata."""
    repairs: tuple[str, ...]
    """Names of the repairs; empty if nothing was wrong."""
    findings: tuple[str, ...]
    """The findings of the check of the original, as text."""
    episodes: tuple[int, ...]
    """Index in the original of every episode of the copy."""
    dropped: tuple[int, ...]
    """Episodes of the original that the copy lacks."""


def repair_dataset(
    root: Path,
    target: Path,
    *,
    dataset: str,
    rename_map: Mapping[str, str] | None = None,
    progress: FrameProgress = no_progress,
    source: str | None = None,
) -> tuple[RepairRecord, DatasetReport]:
    """Write a repaired copy of a dataset; return what was done and the check of the copy.

    The copy is written to a temporary folder, checked, and then renamed. Frames, states and videos that no finding
    concerns are copied bit for bit. A second call for the same original returns
    the result of the first one after a quick check.

    Args:
        root: the original's folder; nothing is written to it.
        target: folder of the copy.
        dataset: name of the dataset in the report.
        rename_map: feature key in the dataset -> key in the contract; the copy has the contract's keys.
        progress: called after each frame that is decoded, of the original and of what differs from it in the copy, and
            while episodes are compared with each other.
        source: the original's `source_digest`, if it is known; all files are read for it.

    Raises:
        DatasetError: a finding cannot be repaired (names it), the copy does not pass the check, or `target` exists and
            is not a repaired copy of this original.
    """
    contents = read_contents(root, rename_map, progress)
    source = source or source_digest(root, rename_map or {})
    if target.exists():
        return _earlier_repair(target, source, rename_map or {}, dataset)
    if target.resolve().is_relative_to(root.resolve()):
        raise DatasetError(f"{target}: lies inside the dataset to repair; choose a folder outside of it")
    observed = observe_frames(contents, "checking the original", progress)
    before = build_report(contents, dataset, observed)
    plan = plan_repair(contents, before, observed)
    with atomic_folder(target) as temporary:
        done = _write(contents, plan, before, source, temporary)
        copied = read_contents(temporary, progress=progress)
        known = _known_videos(contents, observed, copied)
        after = build_report(copied, dataset, observe_frames(copied, "checking the copy", progress, known))
        left = [f for f in after.findings if f.severity == "error" or f.repair]
        if left:
            raise DatasetError(f"{dataset}: the repaired copy still has findings: " + "; ".join(map(str, left)))
    return done, after.model_copy(update={"root": str(target.resolve())})


def _known_videos(original: Contents, observed: ObservedFrames, copy: Contents) -> dict[str, DecodedVideo]:
    """Return the measurements of those videos of the copy whose content, byte for byte, is a decoded original's."""
    by_size = defaultdict(list)
    for file in observed.videos:
        by_size[original.folder.sizes[file]].append(file)
    return {
        video.file: observed.videos[file]
        for video in copy.videos
        for file in by_size[copy.folder.sizes[video.file]]
        if filecmp.cmp(original.folder.file_path(file), copy.folder.file_path(video.file), shallow=False)
    }


def _write(contents: Contents, plan: RepairPlan, before: DatasetReport, source: str, target: Path) -> RepairRecord:
    done = RepairRecord(
        source=source,
        repairs=plan.repairs,
        findings=tuple(map(str, before.findings)) if plan.repairs else (),
        episodes=tuple(k.entry.index for k in plan.episodes),
        dropped=plan.dropped,
    )
    if plan.repairs:
        write_copy(contents, plan, target)
        record = json.dumps(done.model_dump(mode="json"), indent=4)
        (target / REPAIR_PATH).write_text(record + "\n", encoding="utf-8")
        return done
    for file in contents.folder.sizes:
        (target / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(contents.folder.root / file, target / file)
    return done


def source_digest(root: Path, rename_map: Mapping[str, str]) -> str:
    """Return the SHA-256 over the rename_map, and the names and contents of all files."""
    folder = list_folder(root)
    sha = hashlib.sha256(json.dumps(dict(rename_map), sort_keys=True).encode())
    for file, size in sorted(folder.sizes.items()):
        sha.update(f"{file}\0{size}\0".encode())
        with (folder.root / file).open("rb") as stream:
            sha.update(hashlib.file_digest(stream, "sha256").digest())
    return sha.hexdigest()


def _earlier_repair(
    target: Path, source: str, rename_map: Mapping[str, str], dataset: str
) -> tuple[RepairRecord, DatasetReport]:
    report = build_report(read_contents(target), dataset, None)
    if source_digest(target, rename_map) == source and report.episodes is not None:
        return RepairRecord(
            source=source, repairs=(), findings=(), episodes=tuple(range(report.episodes)), dropped=()
        ), report
    try:
        done = RepairRecord.model_validate(list_folder(target).read_json(REPAIR_PATH))
    except (DatasetError, ValueError) as e:
        raise DatasetError(f"{target}: exists already and is not a repaired copy; choose another folder") from e
    if done.source != source:
        raise DatasetError(f"{target}: exists already, repaired from another original; choose another folder")
    return done, report

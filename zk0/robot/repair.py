"""repair_dataset: a copy of a data set with everything undone that can be undone. The original is never written to."""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from zk0.errors import DatasetError
from zk0.records import DatasetReport, Record
from zk0.robot.check.contents import Contents, read_contents
from zk0.robot.check.dataset import report_on
from zk0.robot.folder import list_folder
from zk0.robot.repair_plan import Plan, plan_repair
from zk0.robot.repair_write import write_copy

RECORD_PATH = "meta/repair.json"


class Repair(Record):
    """What a repair did; also stored in the copy as meta/repair.json."""

    source: str
    """SHA-256 over the original's files: names, sizes, and the content of tables and metadata."""
    repairs: tuple[str, ...]
    """Names of the repairs; empty if there was nothing to undo."""
    findings: tuple[str, ...]
    """What the check said of the original."""
    episodes: tuple[int, ...]
    """Number in the original of every episode of the copy."""
    dropped: tuple[int, ...]


def repair_dataset(
    root: Path, target: Path, *, dataset: str, rename_map: Mapping[str, str] | None = None
) -> tuple[Repair, DatasetReport]:
    """Write a repaired copy of `root` to `target`: what was done, and the check of the copy.

    The copy is written aside, checked, and only then renamed. Frames, states and videos that no finding
    concerns are the same bits. Called again for the same original, it returns what it did before.

    Raises:
        DatasetError: something cannot be repaired (named), the copy does not pass the check, or `target`
            is something else already.
    """
    contents = read_contents(root, rename_map)
    source = _fingerprint(root, rename_map or {})
    if target.exists():
        return _done_before(target, source, rename_map or {}, dataset)
    if target.resolve().is_relative_to(root.resolve()):
        raise DatasetError(f"{target}: lies inside the data set that is to be repaired; choose a folder outside of it")
    before = report_on(contents, dataset, quick=False)
    plan = plan_repair(contents, before)
    target.parent.mkdir(parents=True, exist_ok=True)
    half = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        done = _write(contents, plan, before, source, half / "copy")
        after = report_on(read_contents(half / "copy"), dataset, quick=False)
        left = [f for f in after.findings if f.severity == "error" or f.repair]
        if left:
            raise DatasetError(f"{dataset}: the repaired copy still has faults: " + "; ".join(map(str, left)))
        (half / "copy").rename(target)
    finally:
        shutil.rmtree(half, ignore_errors=True)
    return done, after.model_copy(update={"root": str(target.resolve())})


def _write(contents: Contents, plan: Plan, before: DatasetReport, source: str, target: Path) -> Repair:
    done = Repair(
        source=source,
        repairs=plan.repairs,
        findings=tuple(map(str, before.findings)) if plan.repairs else (),
        episodes=tuple(k.entry.index for k in plan.episodes),
        dropped=plan.dropped,
    )
    if plan.repairs:
        write_copy(contents, plan, target)
        record = json.dumps(done.model_dump(mode="json"), indent=4)
        (target / RECORD_PATH).write_text(record + "\n", encoding="utf-8")
        return done
    for file in contents.folder.sizes:
        (target / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(contents.folder.root / file, target / file)
    return done


def _fingerprint(root: Path, rename_map: Mapping[str, str]) -> str:
    folder = list_folder(root)
    sha = hashlib.sha256(json.dumps(dict(rename_map), sort_keys=True).encode())
    for file, size in sorted(folder.sizes.items()):
        sha.update(f"{file}\0{size}\0".encode())
        if file.endswith((".parquet", ".json", ".jsonl")):
            with (folder.root / file).open("rb") as stream:
                sha.update(hashlib.file_digest(stream, "sha256").digest())
    return sha.hexdigest()


def _done_before(
    target: Path, source: str, rename_map: Mapping[str, str], dataset: str
) -> tuple[Repair, DatasetReport]:
    report = report_on(read_contents(target), dataset, quick=False)
    if _fingerprint(target, rename_map) == source and report.episodes is not None:
        return Repair(
            source=source, repairs=(), findings=(), episodes=tuple(range(report.episodes)), dropped=()
        ), report
    try:
        done = Repair.model_validate(list_folder(target).json(RECORD_PATH))
    except (DatasetError, ValueError) as e:
        raise DatasetError(f"{target}: exists already and is no repaired copy; choose another folder") from e
    if done.source != source:
        raise DatasetError(f"{target}: exists already, repaired from something else; choose another folder")
    return done, report

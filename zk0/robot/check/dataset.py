"""check_dataset: facts and findings of one data set."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from zk0.records import DatasetReport, Finding
from zk0.robot.check import cameras, counts, files, format, numbers, statistics, tasks
from zk0.robot.check.contents import Contents, read_contents
from zk0.robot.check.lost import lost_episodes, lost_findings
from zk0.robot.info import DatasetInfo, camera_name

RULES = (*format.RULES, *files.RULES, *counts.RULES, *numbers.RULES, *statistics.RULES, *cameras.RULES, *tasks.RULES)


def check_dataset(
    root: Path, *, dataset: str, quick: bool = False, rename_map: Mapping[str, str] | None = None
) -> DatasetReport:
    """Facts and broken rules of the data set in `root`, which `dataset` names. `quick` decodes no video.

    `rename_map` (feature key in the data set -> key in the contract) says what state and action are called.

    Raises:
        DatasetError: there is no such folder.
    """
    return report_on(read_contents(root, rename_map), dataset, quick=quick)


def report_on(contents: Contents, dataset: str, *, quick: bool) -> DatasetReport:
    """Facts and broken rules of files that were read already."""
    findings = tuple(_findings(contents, quick))
    info, rows = contents.info, contents.rows
    if info is None:
        return DatasetReport(dataset=dataset, root=str(contents.folder.root), findings=findings)
    return DatasetReport(
        dataset=dataset,
        root=str(contents.folder.root),
        findings=findings,
        robot_type=info.robot_type,
        fps=info.fps,
        episodes=None if contents.episodes is None else len(contents.episodes),
        frames=None if rows is None else len(rows),
        cameras=tuple(map(camera_name, info.cameras)),
        state_names=_names(info, contents.state_key),
        action_names=_names(info, contents.action_key),
        tasks=tuple(contents.tasks[t] for t in sorted(contents.tasks)) if contents.tasks else (),
        units=numbers.units_of(contents),
    )


def _findings(contents: Contents, quick: bool) -> Iterator[Finding]:
    remain = len(contents.episodes or ()) > len(lost_episodes(contents))
    for finding in contents.broken:
        drops = finding.repair == "drop-episodes"
        yield finding.model_copy(update={"repair": None}) if drops and not remain else finding
    for rule in RULES:
        yield from rule(contents)
    if quick:
        yield from lost_findings(contents)
        return
    seen = cameras.look_at_all(contents)
    yield from lost_findings(contents, seen)
    yield from cameras.dark_or_frozen(contents, seen)


def _names(info: DatasetInfo, key: str) -> tuple[str, ...]:
    feature = info.features.get(key)
    if feature is None or len(feature.shape) != 1:
        return ()
    dims = feature.shape[0]
    names = feature.flat_names
    return names if len(names) == dims else tuple(f"dim_{i}" for i in range(min(dims, 10_000)))

"""check_dataset: facts and findings of one data set."""

from pathlib import Path

from zk0.records import ACTION, STATE, DatasetReport
from zk0.robot.check.contents import Contents, read_contents
from zk0.robot.check.rules import RULES
from zk0.robot.info import DatasetInfo, camera_name


def check_dataset(root: Path, *, dataset: str, quick: bool = False) -> DatasetReport:
    """Facts and broken rules of the data set in `root`, which `dataset` names. `quick` decodes no video.

    Raises:
        DatasetError: there is no such folder.
    """
    contents = read_contents(root)
    findings = [*contents.broken, *(f for rule in RULES for f in rule(contents))]
    return report(contents, dataset).model_copy(update={"findings": tuple(findings)})


def report(contents: Contents, dataset: str) -> DatasetReport:
    """The facts, as far as the files tell them."""
    info = contents.info
    if info is None:
        return DatasetReport(dataset=dataset, root=str(contents.folder.root))
    return DatasetReport(
        dataset=dataset,
        root=str(contents.folder.root),
        robot_type=info.robot_type,
        fps=info.fps,
        episodes=None if contents.episodes is None else len(contents.episodes),
        frames=contents.rows if contents.frames else None,
        cameras=tuple(map(camera_name, info.cameras)),
        state_names=_names(info, STATE),
        action_names=_names(info, ACTION),
        tasks=tuple(contents.tasks[t] for t in sorted(contents.tasks)) if contents.tasks else (),
    )


def _names(info: DatasetInfo, key: str) -> tuple[str, ...]:
    feature = info.features.get(key)
    if feature is None:
        return ()
    dims = feature.shape[0] if len(feature.shape) == 1 else 0
    names = feature.flat_names
    return names if len(names) == dims else tuple(f"dim_{i}" for i in range(dims))

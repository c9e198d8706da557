"""The check of one dataset: read its files, run every rule, report facts and findings."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from zk0.data.check.contents import Contents, read_contents
from zk0.data.check.decoded_video_rules import DECODED_VIDEO_RULES
from zk0.data.check.detected_units import detect_units
from zk0.data.check.lost_episode_rules import lost_episode_findings, lost_episodes
from zk0.data.check.observed_frames import ObservedFrames, observe_frames
from zk0.data.check.rule_catalog import CONTENT_RULES
from zk0.data.dataset_info import DatasetInfo, camera_name
from zk0.data.frame_progress import FrameProgress, no_progress
from zk0.data.locate import downloaded_commit
from zk0.records import DatasetReport, Finding


def check_dataset(
    root: Path,
    *,
    dataset: str,
    quick: bool = False,
    rename_map: Mapping[str, str] | None = None,
    progress: FrameProgress = no_progress,
) -> DatasetReport:
    """Check a dataset and return its facts and every broken rule.

    Args:
        root: the dataset's folder.
        dataset: its name in the report.
        quick: decode no video and no image.
        rename_map: feature key in the dataset -> key in the contract; names state and action.
        progress: called after each frame that is decoded, and while episodes are compared with each other.

    Raises:
        DatasetError: there is no such folder.
    """
    contents = read_contents(root, rename_map, progress)
    return build_report(contents, dataset, None if quick else observe_frames(contents, "checking", progress))


def build_report(contents: Contents, dataset: str, observed: ObservedFrames | None) -> DatasetReport:
    """Return facts and broken rules of contents that are already read; without `observed`, only what needs no frame."""
    findings = tuple(_findings(contents, observed))
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
        units=detect_units(contents),
        commit=downloaded_commit(contents.folder.root),
    )


def _findings(contents: Contents, observed: ObservedFrames | None) -> Iterator[Finding]:
    remain = len(contents.episodes or ()) > len(lost_episodes(contents))
    for finding in contents.unreadable:
        drops = finding.repair == "drop-episodes"
        yield finding.model_copy(update={"repair": None}) if drops and not remain else finding
    for group in CONTENT_RULES:
        yield from group.findings(contents)
    if observed is None:
        yield from lost_episode_findings(contents)
        return
    yield from lost_episode_findings(contents, observed)
    yield from DECODED_VIDEO_RULES.findings(contents, observed)


def _names(info: DatasetInfo, key: str) -> tuple[str, ...]:
    feature = info.features.get(key)
    if feature is None or len(feature.shape) != 1:
        return ()
    dims = feature.shape[0]
    names = feature.flat_names
    return names if len(names) == dims else tuple(f"dim_{i}" for i in range(min(dims, 10_000)))

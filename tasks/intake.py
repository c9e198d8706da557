"""The steps of the dataset intake: fetch a candidate dataset, check it, repair it, show its findings and frames."""

from base64 import b64encode
from collections.abc import Mapping
from pathlib import Path

from prefect import task
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE

from tasks.events import ProgressEvent, emit_progress, frame_log_lines, log_line
from tasks.retry import DISK_RETRIES, HUB_RETRIES
from zk0.records import DatasetReport
from zk0.settings.home_folder import expand_home


@task(task_run_name="fetch {uri}", cache_policy=NO_CACHE, **HUB_RETRIES)
def fetch_data(uri: str, cache: str) -> str:
    """Return the folder of a dataset, downloaded if it is not local."""
    from zk0.data.locate import locate_unchecked

    emit_progress(ProgressEvent(kind="stage", text=f"looking for {uri}"))
    return str(locate_unchecked(uri, expand_home(cache)))


@task(task_run_name="check {uri}", cache_policy=NO_CACHE, **DISK_RETRIES)
def check_data(root: str, uri: str, quick: bool, rename_map: Mapping[str, str]) -> DatasetReport:
    """Check one dataset; the report holds every broken rule.

    Args:
        root: folder of the dataset.
        uri: its name in the report.
        quick: decode no video.
        rename_map: feature key in the dataset -> key in the contract.
    """
    from zk0.data.check import check_dataset

    emit_progress(ProgressEvent(kind="stage", text=f"checking {uri}"))
    progress = frame_log_lines(uri)
    report = check_dataset(Path(root), dataset=uri, quick=quick, rename_map=rename_map, progress=progress)
    log_line(f"{uri}: {len(report.errors)} errors, {len(report.findings) - len(report.errors)} warnings")
    return report


@task(task_run_name="repair {uri}", cache_policy=NO_CACHE, **DISK_RETRIES)
def repair_data(root: str, target: str, uri: str, rename_map: Mapping[str, str]) -> DatasetReport:
    """Write a repaired copy to `target` and return the check of that copy; the original stays as it is."""
    from zk0.data.repair.repair_dataset import repair_dataset

    emit_progress(ProgressEvent(kind="stage", text=f"repairing {uri}"))
    copy, progress = expand_home(target), frame_log_lines(uri)
    done, report = repair_dataset(Path(root), copy, dataset=uri, rename_map=rename_map, progress=progress)
    repairs = ", ".join(done.repairs) or "nothing to repair"
    log_line(f"{uri}: {repairs}; {len(done.dropped)} episodes dropped; copy in {target}")
    return report


@task(cache_policy=NO_CACHE)
def show_findings(report: DatasetReport) -> None:
    """Show the findings of a dataset as a table in the UI."""
    create_table_artifact(
        table=[f.model_dump(mode="json") for f in report.findings] or [{"rule": "no rule is broken"}],
        key="dataset-findings",
        description=f"{report.dataset}: {report.episodes} episodes, {report.frames} frames, {report.fps} fps",
    )


@task(cache_policy=NO_CACHE, **DISK_RETRIES)
def show_preview(root: str, uri: str, unit: str, rename_map: Mapping[str, str]) -> None:
    """Show thumbnails and joint plots in the UI of this flow's Prefect server; they are sent nowhere else."""
    from zk0.data.preview import read_preview
    from zk0.report.charts.thumbnails import preview_sections
    from zk0.report.tables.markdown import escape_markdown

    preview = read_preview(Path(root), rename_map)
    thumbnails = [(p.episode, p.frame, p.camera, p.pixels) for p in preview.images]
    motions = [(f"episode {m.episode}", m.seconds, m.state, m.action) for m in preview.motions]
    names = preview.motions[0].names if preview.motions else ()
    sections = preview_sections(thumbnails, motions, names, unit)
    images = [
        f"## {title}\n\n![{title}](data:image/png;base64,{b64encode(image).decode()})" for title, image in sections
    ]
    heading = f"# {escape_markdown(uri)}"
    text = "\n\n".join([heading, *images]) if images else f"{heading}\n\nNo frame and no motion could be read."
    create_markdown_artifact(markdown=text, key="dataset-preview", description=uri)

"""Data intake: fetch a data set, check it, repair it, show what is in it."""

from base64 import b64encode
from collections.abc import Mapping
from pathlib import Path

from prefect import task
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE

from tasks.events import Event, say, tell
from tasks.retry import is_transient
from zk0.records import DatasetReport


@task(
    task_run_name="fetch {uri}",
    cache_policy=NO_CACHE,
    retries=2,
    retry_delay_seconds=[10, 60],
    retry_condition_fn=is_transient,
)
def fetch_data(uri: str, cache: str) -> str:
    """The folder of a data set, downloaded if it is not local."""
    from zk0.robot.folder import folder_of

    tell(Event(kind="stage", text=f"looking for {uri}"))
    return str(folder_of(uri, Path(cache).expanduser()))


@task(task_run_name="check {uri}", cache_policy=NO_CACHE)
def check_data(root: str, uri: str, quick: bool, rename_map: Mapping[str, str]) -> DatasetReport:
    """Every broken rule of one data set."""
    from zk0.robot.check import check_dataset

    tell(Event(kind="stage", text=f"checking {uri}"))
    report = check_dataset(Path(root), dataset=uri, quick=quick, rename_map=rename_map)
    say(f"{uri}: {len(report.errors)} errors, {len(report.findings) - len(report.errors)} warnings")
    return report


@task(task_run_name="repair {uri}", cache_policy=NO_CACHE)
def repair_data(root: str, target: str, uri: str, rename_map: Mapping[str, str]) -> DatasetReport:
    """The check of a repaired copy; the original is not touched."""
    from zk0.robot.repair import repair_dataset

    tell(Event(kind="stage", text=f"repairing {uri}"))
    done, report = repair_dataset(Path(root), Path(target).expanduser(), dataset=uri, rename_map=rename_map)
    say(f"{uri}: {', '.join(done.repairs) or 'nothing to repair'}; {len(done.dropped)} episodes dropped; at {target}")
    return report


@task(cache_policy=NO_CACHE)
def show_findings(report: DatasetReport) -> None:
    """Facts and findings as a table in the UI."""
    create_table_artifact(
        table=[f.model_dump(mode="json") for f in report.findings] or [{"rule": "none broken"}],
        key="dataset-findings",
        description=f"{report.dataset}: {report.episodes} episodes, {report.frames} frames, {report.fps} fps",
    )


@task(cache_policy=NO_CACHE)
def show_preview(root: str, uri: str, unit: str, rename_map: Mapping[str, str]) -> None:
    """Thumbnails and joints in the UI of whoever runs this flow, and nowhere else."""
    from zk0.report.thumbnails import preview_sections
    from zk0.robot.preview import preview

    seen = preview(Path(root), rename_map)
    pictures = [(p.episode, p.frame, p.camera, p.pixels) for p in seen.pictures]
    motions = [(f"episode {m.episode}", m.seconds, m.state, m.action) for m in seen.motions]
    names = seen.motions[0].names if seen.motions else ()
    sections = preview_sections(pictures, motions, names, unit)
    images = [
        f"## {title}\n\n![{title}](data:image/png;base64,{b64encode(image).decode()})" for title, image in sections
    ]
    text = "\n\n".join([f"# {uri}", *images]) if images else f"# {uri}\n\nNothing could be read."
    create_markdown_artifact(markdown=text, key="dataset-preview", description=uri)

"""`zk0 videos`: measure the episode videos of a session."""

from pathlib import Path
from typing import Annotated

import typer

from flows.cli.command_group import command_group
from flows.cli.errors_to_exit_codes import errors_to_exit_codes

videos_app = command_group(
    "videos",
    "Measure videos, and show rounds side by side.",
)


@videos_app.callback()
def videos() -> None:
    """Measure videos, and show rounds side by side."""


@videos_app.command("analyse")
def analyze_session_videos(
    folder: Annotated[
        Path, typer.Argument(help="Folder of a session, its evaluate folder, or a folder of `zk0 rollout`.")
    ],
) -> None:
    """Write video_analysis.json: success, duration and smoothness by optical flow of every video.

    Episodes with videos of several rounds also get one video with these rounds side by side.
    """
    with errors_to_exit_codes():
        from rich.console import Console
        from rich.table import Table

        from zk0.report.video.motion_analysis import ANALYSIS_FILE, analyze_videos

        inner = folder / "evaluate"
        videos_folder = inner if inner.is_dir() else folder
        found = analyze_videos(videos_folder)
        console = Console()
        table = Table()
        for heading in ("round", "videos", "success", "mean seconds", "flow smoothness"):
            table.add_column(heading, justify="right")
        for one in found.rounds:
            smooth = "–" if one.mean_flow_smoothness is None else f"{one.mean_flow_smoothness:.2f}"
            success = f"{one.successes} of {one.attempts}" if one.attempts else "–"
            number = "–" if one.round is None else str(one.round)
            table.add_row(number, str(one.videos), success, f"{one.mean_duration_seconds:.1f}", smooth)
        console.print(table)
        for video in found.side_by_side:
            console.print(f"side by side  {videos_folder / video}", soft_wrap=True)
        console.print(f"written       {videos_folder / ANALYSIS_FILE}", soft_wrap=True)

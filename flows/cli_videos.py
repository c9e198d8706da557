"""`zk0 videos`: what the films of a session show."""

from pathlib import Path
from typing import Annotated

import typer

from flows.failure import one_clear_line

videos_app = typer.Typer(
    name="videos",
    help="Measure films and put rounds side by side.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


@videos_app.callback()
def videos() -> None:
    """Measure films and put rounds side by side."""


@videos_app.command()
def analyse(
    folder: Annotated[Path, typer.Argument(help="A session's folder, its evaluate folder, or one of zk0 rollout.")],
) -> None:
    """Write video_analysis.json: success, duration and smoothness by optical flow of every film, and a film of what was
    filmed in several rounds, side by side."""
    with one_clear_line():
        from rich.console import Console
        from rich.table import Table

        from zk0.report.video_analysis import ANALYSIS, analyse_videos

        inner = folder / "evaluate"
        place = inner if inner.is_dir() else folder
        found = analyse_videos(place)
        console = Console()
        table = Table()
        for heading in ("round", "films", "success", "mean seconds", "flow smoothness"):
            table.add_column(heading, justify="right")
        for one in found.rounds:
            smooth = "–" if one.mean_flow_smoothness is None else f"{one.mean_flow_smoothness:.2f}"
            success = f"{one.successes} of {one.attempts}" if one.attempts else "–"
            number = "–" if one.round is None else str(one.round)
            table.add_row(number, str(one.films), success, f"{one.mean_duration_seconds:.1f}", smooth)
        console.print(table)
        for video in found.side_by_side:
            console.print(f"side by side  {place / video}", soft_wrap=True)
        console.print(f"written       {place / ANALYSIS}", soft_wrap=True)

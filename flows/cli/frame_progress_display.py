"""Shows on a terminal, or as lines, how many frames of a dataset are done."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from zk0.data.frame_progress import FrameProgress

SECONDS_BETWEEN_LINES = 10.0


@contextmanager
def shown_frames(output: TextIO | None = None) -> Iterator[FrameProgress]:
    """Yield a function that shows the progress on stderr: as a bar in a terminal, else as a line now and then."""
    output = output or sys.stderr
    if not output.isatty():
        yield _FrameLines(output).show
        return
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=28), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(file=output), transient=True) as progress:
        bar = progress.add_task("", total=None, visible=False)
        yield lambda work, done, total: progress.update(
            bar, description=f"{work}, frames", completed=done, total=total, visible=True
        )


class _FrameLines:
    """A line about the frames in every `SECONDS_BETWEEN_LINES`."""

    def __init__(self, output: TextIO) -> None:
        self._output = output
        self._shown_at = time.monotonic()

    def show(self, work: str, done: int, total: int) -> None:
        """Print a line if one is due."""
        now = time.monotonic()
        if now - self._shown_at >= SECONDS_BETWEEN_LINES:
            self._shown_at = now
            print(f"{work}: {done} of {total} frames", file=self._output, flush=True)

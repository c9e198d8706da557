"""How work on the frames of a dataset reports how far it is."""

from collections.abc import Callable

FrameProgress = Callable[[str, int, int], None]
"""Called with the work, the number of frames that are done, and that of all frames."""


def no_progress(work: str, done: int, total: int) -> None:
    """Report nothing."""


class FrameCounter:
    """Counts frames and reports each."""

    def __init__(self, work: str, total: int, progress: FrameProgress) -> None:
        self._work, self._total, self._progress = work, total, progress
        self._done = 0

    def count(self) -> None:
        """Count one frame."""
        self._done += 1
        self._progress(self._work, self._done, self._total)

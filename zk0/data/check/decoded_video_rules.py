"""Rules about the pictures that videos show; only the full check decodes them."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from zk0.data.check.contents import Contents
from zk0.data.check.observed_frames import ObservedFrames
from zk0.data.check.rule import RuleGroup, Violation

MAX_DARK_BRIGHTNESS = 20.0
"""Mean brightness (0 to 255, where video black is 16) under which a frame shows nothing."""
MAX_FROZEN_CHANGE = 0.05
"""Mean change of brightness under which two frames are the same picture, encoded twice."""

DECODED_VIDEO_RULES = RuleGroup[[Contents, ObservedFrames], Violation]("What the videos show", __name__)


@DECODED_VIDEO_RULES.rule("dark-camera", severity="warning")
def dark_camera(contents: Contents, observed: ObservedFrames) -> Iterator[Violation]:
    """Every camera shows something brighter than black; a dark one was covered or unplugged."""
    for key in contents.info.cameras if contents.info else ():
        brightness, _ = _luma(contents, observed, key)
        if _is_dark(brightness):
            yield Violation(key, f"nothing brighter than {brightness.max():.1f} of 255", "frames that show motion")


@DECODED_VIDEO_RULES.rule("frozen-camera", severity="warning")
def frozen_camera(contents: Contents, observed: ObservedFrames) -> Iterator[Violation]:
    """The picture of every camera changes; one that never changes comes from a camera that hung."""
    for key in contents.info.cameras if contents.info else ():
        brightness, change = _luma(contents, observed, key)
        if len(change) and float(change.max()) < MAX_FROZEN_CHANGE and not _is_dark(brightness):
            yield Violation(key, "the same picture in all frames", "frames that show motion")


def _is_dark(brightness: NDArray[np.float64]) -> bool:
    return bool(len(brightness)) and float(brightness.max()) < MAX_DARK_BRIGHTNESS


def _luma(contents: Contents, observed: ObservedFrames, key: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return brightness and change of brightness over all decoded videos of one camera."""
    decoded = [observed.videos[f] for f in contents.videos_of(key) if f in observed.videos]
    brightness = np.concatenate([d.brightness for d in decoded]) if decoded else np.empty(0)
    change = np.concatenate([d.change for d in decoded]) if decoded else np.empty(0)
    return brightness, change

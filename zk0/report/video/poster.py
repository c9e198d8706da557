"""The still image that a page shows in the place of a video until it plays."""

from collections import deque
from io import BytesIO
from pathlib import Path

from PIL import Image

from zk0.errors import ReportError
from zk0.report.video.decoder import iterate_video_frames

_QUALITY = 80


def last_frame_jpeg(path: Path) -> bytes | None:
    """The last frame of a video as JPEG; None if the video cannot be decoded, as the page then shows."""
    try:
        last = deque(iterate_video_frames(path), maxlen=1)
    except ReportError:
        return None
    if not last:
        return None
    image = BytesIO()
    Image.fromarray(last[0]).save(image, "JPEG", quality=_QUALITY)
    return image.getvalue()

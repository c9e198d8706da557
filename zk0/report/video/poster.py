"""The still image that a page shows in the place of a video until it plays."""

from io import BytesIO
from pathlib import Path
from typing import Any

import imageio.v2 as imageio
import numpy as np
from PIL import Image

_QUALITY = 80


def last_frame_jpeg(path: Path) -> bytes | None:
    """The last frame of a video as JPEG; None if the video cannot be decoded, as the page then shows."""
    try:
        reader: Any = imageio.get_reader(path)
        with reader:
            last = None
            for frame in reader:
                last = frame
    except (OSError, ValueError, RuntimeError, IndexError):
        return None
    if last is None:
        return None
    image = BytesIO()
    Image.fromarray(np.asarray(last)).save(image, "JPEG", quality=_QUALITY)
    return image.getvalue()

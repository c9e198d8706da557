"""Rotation of log files that processes write to directly: their output, which no logging library handles."""

import os
import time
import zipfile
from datetime import datetime
from pathlib import Path

from zk0.storage.atomic import atomic_path

ROTATED_BYTES = 500_000_000
"""A log above this size is compressed into a file of its own, and continues empty."""
KEPT_SECONDS = 10 * 86_400.0
"""Compressed logs are removed after this time."""


def rotate_log(log: Path, largest_bytes: int = ROTATED_BYTES, kept_seconds: float = KEPT_SECONDS) -> None:
    """Remove old compressed logs; compress a log above its size to `NAME.TIME.log.zip` beside it, and empty it.

    Processes that append to the log go on in the empty file. A line that is written between the copy and the emptying
    is lost.

    Args:
        log: `NAME.log`; a missing file is ignored.
        largest_bytes: a log of this size or smaller stays as it is.
        kept_seconds: age at which compressed logs are removed.
    """
    for old in log.parent.glob(f"{log.stem}.*.log.zip"):
        if time.time() - old.stat().st_mtime > kept_seconds:
            old.unlink(missing_ok=True)
    if not log.is_file() or log.stat().st_size <= largest_bytes:
        return
    written = datetime.fromtimestamp(log.stat().st_mtime)
    target = log.with_name(f"{log.stem}.{written:%Y-%m-%d_%H-%M-%S_%f}.log.zip")
    with atomic_path(target, durable=False) as half, zipfile.ZipFile(half, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(log, log.name)
    os.truncate(log, 0)

"""The disk space of a session as text."""

from zk0.resources.disk_use import DiskUse


def disk_line(use: DiskUse) -> str:
    """Return the most that a session writes to the disk, and what stays in its folder, as one line."""
    cache = use.peak_bytes("cache")
    stays = f"{gigabytes(use.kept_bytes('session'))} stay"
    line = f"disk: up to {gigabytes(use.peak_bytes('session'))} in the session's folder ({stays})"
    return f"{line}, up to {gigabytes(cache)} in the cache ({_largest(use, 'cache')})" if cache else line


def gigabytes(size: float) -> str:
    """Return a size in MB or GB (1e6 and 1e9 bytes), rounded to two digits or whole MB.

    >>> gigabytes(399_523_968), gigabytes(44_236_800_000), gigabytes(1_249), gigabytes(2_345_000_000)
    ('400 MB', '44 GB', '1 MB', '2.3 GB')
    """
    if size < 999.5e6:
        return f"{max(round(size / 1e6), 1)} MB"
    return f"{size / 1e9:.1f} GB" if size < 9.95e9 else f"{size / 1e9:.0f} GB"


def _largest(use: DiskUse, place: str) -> str:
    """Return the part that takes most of a place."""
    largest = max((part for part in use.parts if part.place == place), key=lambda part: part.peak_bytes)
    return f"{largest.purpose} {gigabytes(largest.peak_bytes)}"

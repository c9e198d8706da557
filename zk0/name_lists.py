"""Short lists of names and episodes, for messages and findings."""

from collections.abc import Sequence

MAX_NAME = 80
"""Characters of a name that are shown."""


def join_names(names: Sequence[object], most: int = 6) -> str:
    """Return the first names, separated by commas, and how many more there are. Long ones lack their middle.

    >>> join_names([3, 7, 9], most=2), join_names([])
    ('3, 7 and 1 more', 'none')
    >>> join_names(["videos/" + 90 * "x" + "/file-000.mp4"])
    'videos/xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx...xxxxxxxxxxxxxxxxxxxxxxxxxx/file-000.mp4'
    """
    if not names:
        return "none"
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(_shortened(str(n)) for n in names[:most]) + more


def _shortened(name: str) -> str:
    half = MAX_NAME // 2 - 2
    return name if len(name) <= MAX_NAME else f"{name[:half]}...{name[-half - 1 :]}"


def join_episodes(indices: Sequence[int]) -> str:
    """Return a list of episodes by index.

    >>> join_episodes([4])
    'episode 4'
    """
    return f"episode{'s' if len(indices) != 1 else ''} {join_names(indices, 8)}"

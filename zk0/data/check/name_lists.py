"""Short lists of names and episodes for the texts of findings."""

from collections.abc import Sequence


def join_names(names: Sequence[object], most: int = 6) -> str:
    """Return the first names, separated by commas, and how many more there are.

    >>> join_names([3, 7, 9], most=2), join_names([])
    ('3, 7 and 1 more', 'none')
    """
    if not names:
        return "none"
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(str(n)[:60] for n in names[:most]) + more


def join_episodes(indices: Sequence[int]) -> str:
    """Return a list of episodes by index.

    >>> join_episodes([4])
    'episode 4'
    """
    return f"episode{'s' if len(indices) != 1 else ''} {join_names(indices, 8)}"

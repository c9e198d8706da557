"""How findings name things."""

from collections.abc import Sequence


def some(names: Sequence[object], most: int = 6) -> str:
    """The first names, and how many more there are.

    >>> some([3, 7, 9], most=2), some([])
    ('3, 7 and 1 more', 'none')
    """
    if not names:
        return "none"
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(str(n)[:60] for n in names[:most]) + more


def episodes(indices: Sequence[int]) -> str:
    """Episodes by number.

    >>> episodes([4])
    'episode 4'
    """
    return f"episode{'s' if len(indices) != 1 else ''} {some(indices, 8)}"

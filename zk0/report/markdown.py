"""Text and tables in GitHub's Markdown; what others wrote stays text."""

import re
from collections.abc import Sequence

_SPECIAL = re.compile(r"([\\`*_{}\[\]#|~$!])")
_LINK = re.compile(r"(?i)(https?|ftp|mailto|www)([:.])")
_THIN_SPACES = "\u00a0\u202f"


def escaped(text: str) -> str:
    """One line of text that Markdown and HTML show as it is.

    >>> print(escaped("a|b <i>*c*\\n# d"))
    a\\|b &lt;i&gt;\\*c\\* \\# d
    """
    line = "".join(c if c.isprintable() or c in _THIN_SPACES else " " for c in text)
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _LINK.sub(lambda m: f"{m[1]}\u2060{m[2]}", _SPECIAL.sub(r"\\\1", line))


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of plain text; every cell is escaped."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(
        "| " + " | ".join(cell if index == 1 else escaped(cell) for cell in line) + " |"
        for index, line in enumerate(lines)
    )

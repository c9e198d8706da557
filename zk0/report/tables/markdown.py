"""GitHub's Markdown: tables, and escaping of text from others, so that it cannot become markup."""

import re
from collections.abc import Sequence

_SPECIAL = re.compile(r"([\\`*_{}\[\]#|~$!])")
_LINK = re.compile(r"(?i)(https?|ftp|mailto|www)([:.])")
_SPACES = "\u00a0\u202f"


def escape_markdown(text: str) -> str:
    """One line of text, escaped so that Markdown and HTML display it literally.

    >>> print(escape_markdown("a|b <i>*c*\\n# d"))
    a\\|b &lt;i&gt;\\*c\\* \\# d
    """
    line = "".join(c if c.isprintable() or c in _SPACES else " " for c in text)
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _LINK.sub(lambda m: f"{m[1]}\u2060{m[2]}", _SPECIAL.sub(r"\\\1", line))


def markdown_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of plain text; every cell is escaped."""
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(
        "| " + " | ".join(cell if index == 1 else escape_markdown(cell) for cell in line) + " |"
        for index, line in enumerate(lines)
    )

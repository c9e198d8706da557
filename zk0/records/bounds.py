"""Types for fields that come from other machines: each has a strict type and a largest size.

A record whose fields have these types refuses what is out of bounds where it is parsed, before anything is computed.
Text is cleaned (`clean_text`), because it is shown in terminals, logs and pages.
"""

import re
import unicodedata
from typing import Annotated

from pydantic import AfterValidator, Field

MAX_TEXT = 4000
"""Longest text of a record, in characters."""
INVISIBLE = frozenset({"Cc", "Cf", "Cs", "Co", "Zl", "Zp"})
"""Unicode categories of what is not shown as it is: control, format, surrogate, private use, line, paragraph ends."""
_BEGINS_MARKUP = re.compile("[a-zA-Z#/@!]")
"""First character between brackets that Rich reads as a style, a link or the end of one."""


def clean_text(text: str, max_length: int = MAX_TEXT) -> str:
    r"""Return the text on one line, without control characters and without what Rich reads as markup, cut to a length.

    >>> clean_text("a\x1b[31mred\r\nline [link=http://x]y[/link] [0.1, 2]")
    'a (31mred line (link=http://x)y(/link) [0.1, 2]'
    >>> clean_text("abcdef", 4)
    'a...'
    >>> clean_text("[/a[b]c]")
    '(/a(b)c)'
    """
    text = text[: 2 * max_length].replace("\x1b[", " (")
    shown = "".join(" " if unicodedata.category(c) in INVISIBLE else c for c in text)
    shown = re.sub(r" {2,}", " ", _without_markup(shown)) if shown != text or "[" in shown else shown
    return shown if len(shown) <= max_length else shown[: max_length - 3] + "..."


def _without_markup(text: str) -> str:
    """Return the text with other brackets around what Rich reads as markup, nested ones too, in one pass."""
    shown, opened = list(text), list[int]()
    for at, character in enumerate(text):
        if character == "[":
            opened.append(at)
        elif character == "]" and opened and _BEGINS_MARKUP.match(text, (start := opened.pop()) + 1):
            shown[start], shown[at] = "()"
    return "".join(shown)


Text = Annotated[str, Field(max_length=10**6), AfterValidator(clean_text)]
"""Text that is shown: cleaned, and cut to MAX_TEXT."""
Name = Annotated[str, Field(max_length=1000), AfterValidator(clean_text)]
"""Name of a client or a dataset; cleaned."""
DIGEST_CHARACTERS = r"^[0-9A-Za-z:_-]*$"
"""Pattern of a digest with its algorithm, where a message that does not fit is refused."""
DigestText = Annotated[str, Field(max_length=128), AfterValidator(clean_text)]
"""A digest in hexadecimal; it is compared with one that was computed here."""
PathSketch = Annotated[str, Field(pattern=r"^([0-9a-f]{128})?$")]
"""Sketch of an episode's path (`zk0.data.path_sketches`); empty: the arm hardly moves."""
ParameterPatterns = Annotated[
    tuple[Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[A-Za-z0-9_.*?!\[\]-]+$")], ...],
    Field(max_length=64),
]
"""Patterns of parameter names, as `fnmatch` reads them."""
Frames = Annotated[int, Field(strict=True, ge=1, lt=2**29)]
"""Number of frames; below 2^29, its product with a float32 weight is exact in float64."""
Count = Annotated[int, Field(strict=True, ge=0, le=10**12)]
"""Number of bytes, steps, episodes or values."""
MAX_INDEX = 10**7
"""Largest number of a round or an episode."""
Index = Annotated[int, Field(strict=True, ge=0, le=MAX_INDEX)]
"""Number of a round or an episode."""
Measure = Annotated[float, Field(strict=True, ge=0, le=1e15)]
"""A loss, norm, error or rate: its square is finite, and so is the sum of the squares of all clients."""
Seconds = Annotated[float, Field(strict=True, ge=0, le=1e9)]
"""A duration."""

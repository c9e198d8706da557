"""Colors of the charts, the videos and the HTML pages, for a light and a dark theme.

Series colors are those of Okabe and Ito (2008), which can be distinguished with every common color vision deficiency;
the dark theme uses brighter variants. Series also differ by marker and dash pattern, never by color alone.
"""

from typing import Literal

from zk0.records import Record


class Theme(Record):
    """Colors as #rrggbb."""

    scheme: Literal["light", "dark"]
    background: str
    card: str
    text: str
    muted: str
    line: str
    accent: str
    good: str
    bad: str
    series: tuple[str, ...]


LIGHT_THEME = Theme(
    scheme="light",
    background="#f5f6f8",
    card="#ffffff",
    text="#17202a",
    muted="#566370",
    line="#dde2e8",
    accent="#0068a5",
    good="#00734f",
    bad="#b14900",
    series=("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#5b4b8a", "#7a7a00"),
)
DARK_THEME = Theme(
    scheme="dark",
    background="#0e1318",
    card="#161d24",
    text="#e8edf2",
    muted="#9aa8b5",
    line="#2b3641",
    accent="#62bdf0",
    good="#3fcf9f",
    bad="#ff9350",
    series=("#56b4e9", "#ff8a3c", "#2fc79a", "#e39bc4", "#f0b429", "#9fb7ff", "#b79cf0", "#d3d35a"),
)


def rgb(color: str) -> tuple[int, int, int]:
    """Convert #rrggbb to red, green and blue from 0 to 255.

    >>> rgb("#0072b2")
    (0, 114, 178)
    """
    return int(color[1:3], 16), int(color[3:5], 16), int(color[5:7], 16)


def css_variables(theme: Theme) -> str:
    """The theme as CSS custom properties."""
    names = ("background", "card", "text", "muted", "line", "accent", "good", "bad")
    series = [f"--series-{index}: {color};" for index, color in enumerate(theme.series)]
    return " ".join([*(f"--{name}: {getattr(theme, name)};" for name in names), *series])

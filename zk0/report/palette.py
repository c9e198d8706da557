"""The colours that the charts, the videos and the page share, for light and for dark surroundings.

Series colours come from Okabe and Ito (2008), told apart with every common colour vision deficiency; the dark
theme brightens those that would sink into its background. Series also differ by marker and dash, never by colour alone.
"""

from typing import Literal

from zk0.records import Record


class Theme(Record):
    """Colours as #rrggbb."""

    scheme: Literal["light", "dark"]
    background: str
    card: str
    ink: str
    muted: str
    line: str
    accent: str
    good: str
    bad: str
    series: tuple[str, ...]


LIGHT = Theme(
    scheme="light",
    background="#f5f6f8",
    card="#ffffff",
    ink="#17202a",
    muted="#566370",
    line="#dde2e8",
    accent="#0068a5",
    good="#00734f",
    bad="#b14900",
    series=("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#5b4b8a", "#7a7a00"),
)
DARK = Theme(
    scheme="dark",
    background="#0e1318",
    card="#161d24",
    ink="#e8edf2",
    muted="#9aa8b5",
    line="#2b3641",
    accent="#62bdf0",
    good="#3fcf9f",
    bad="#ff9350",
    series=("#56b4e9", "#ff8a3c", "#2fc79a", "#e39bc4", "#f0b429", "#9fb7ff", "#b79cf0", "#d3d35a"),
)


def rgb(colour: str) -> tuple[int, int, int]:
    """#rrggbb as three bytes.

    >>> rgb("#0072b2")
    (0, 114, 178)
    """
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


def css_variables(theme: Theme) -> str:
    """The theme as declarations of CSS custom properties."""
    names = ("background", "card", "ink", "muted", "line", "accent", "good", "bad")
    series = [f"--series-{index}: {colour};" for index, colour in enumerate(theme.series)]
    return " ".join([*(f"--{name}: {getattr(theme, name)};" for name in names), *series])

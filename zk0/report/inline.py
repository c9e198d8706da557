"""Charts that live inside a page."""

from base64 import b64encode
from collections.abc import Callable

from matplotlib.figure import Figure

from zk0.records import Record
from zk0.report.lines import png
from zk0.report.palette import DARK, LIGHT


class Chart(Record):
    """One chart for light and for dark surroundings, as data URIs."""

    light: str
    dark: str
    text: str
    """What a reader who cannot see it is told."""


def inlined(draw: Callable[..., Figure], text: str) -> Chart:
    """A chart in both themes; `draw` takes `theme`."""
    return Chart(light=data_png(draw(theme=LIGHT)), dark=data_png(draw(theme=DARK)), text=text)


def data_png(figure: Figure, dpi: int = 150) -> str:
    """The figure as a data URI."""
    return f"data:image/png;base64,{b64encode(png(figure, dpi)).decode()}"

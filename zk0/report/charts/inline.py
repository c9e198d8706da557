"""Charts as data URIs, for embedding in a page."""

from base64 import b64encode
from collections.abc import Callable

from matplotlib.figure import Figure

from zk0.records import Record
from zk0.report.charts.axes import figure_png
from zk0.report.palette import DARK_THEME, LIGHT_THEME


class InlineChart(Record):
    """One chart in the light and the dark theme, as data URIs."""

    light: str
    dark: str
    alt_text: str


def inline_chart(draw: Callable[..., Figure], alt_text: str) -> InlineChart:
    """Draw a chart in both themes; `draw` has a parameter `theme`."""
    light, dark = png_data_uri(draw(theme=LIGHT_THEME)), png_data_uri(draw(theme=DARK_THEME))
    return InlineChart(light=light, dark=dark, alt_text=alt_text)


def png_data_uri(figure: Figure, dpi: int = 150) -> str:
    """The figure as a data URI of a PNG."""
    return f"data:image/png;base64,{b64encode(figure_png(figure, dpi)).decode()}"

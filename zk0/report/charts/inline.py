"""Charts as data URIs, for embedding in a page."""

from base64 import b64encode
from collections.abc import Callable

from matplotlib.figure import Figure

from zk0.records import Record
from zk0.report.charts.axes import figure_png
from zk0.report.palette import DARK_THEME, LIGHT_THEME


class InlineChart(Record):
    """One chart in the light and the dark theme."""

    light_png: bytes
    dark_png: bytes
    alt_text: str

    @property
    def light(self) -> str:
        """The chart in the light theme as a data URI."""
        return _data_uri(self.light_png)

    @property
    def dark(self) -> str:
        """The chart in the dark theme as a data URI."""
        return _data_uri(self.dark_png)


def inline_chart(draw: Callable[..., Figure], alt_text: str) -> InlineChart:
    """Draw a chart in both themes; `draw` has a parameter `theme`."""
    light, dark = (figure_png(draw(theme=theme)) for theme in (LIGHT_THEME, DARK_THEME))
    return InlineChart(light_png=light, dark_png=dark, alt_text=alt_text)


def _data_uri(png: bytes) -> str:
    return f"data:image/png;base64,{b64encode(png).decode()}"

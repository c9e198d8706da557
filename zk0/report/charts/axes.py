"""Common style of the charts: axes, series, legends, footnotes, PNG output."""

from collections.abc import Mapping, Sequence
from io import BytesIO
from math import isnan, nan
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from zk0.report.metrics import mean_or_none
from zk0.report.palette import Theme

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "h")
DASHES = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)))
MAX_NAMED_CLIENTS = 10
"""With more clients, their series are gray and unnamed, and their mean is drawn."""
MAX_DRAWN_CLIENTS = 100
"""With more clients, the range of most of them is drawn instead of their series."""
MAX_MARKED_POINTS = 40
"""Series with more points have no markers."""


def figure_png(figure: Figure, dpi: int = 150) -> bytes:
    """The figure as PNG; the same figure gives the same bytes."""
    content = BytesIO()
    FigureCanvasAgg(figure)
    figure.savefig(content, format="png", dpi=dpi, metadata={"Software": None})
    return content.getvalue()


def measured_points(rounds: Sequence[int], values: Sequence[float]) -> list[tuple[int, float]]:
    """The points that are not NaN."""
    return [(x, y) for x, y in zip(rounds, values, strict=True) if not isnan(y)]


def shorten_label(name: str, max_length: int = 38) -> str:
    """A name as a matplotlib label: one line of at most `max_length` characters, escaped.

    matplotlib would read `$` as mathematics, and would leave a label that starts with `_` out of the legend.
    """
    plain = "".join(c if c.isprintable() else " " for c in name)
    cut = plain if len(plain) <= max_length else f"{plain[: max_length - 1]}…"
    return (f" {cut}" if cut.startswith("_") else cut).replace("$", r"\$")


def draw_series(
    axes: Axes, rounds: Sequence[int], values: Sequence[float], style: tuple[int, str], theme: Theme
) -> Line2D:
    """Draw one series with gaps at NaN, bridged by a thin dotted line; `style` is its palette index and its label."""
    index, label = style
    points = measured_points(rounds, values)
    color = theme.series[index % len(theme.series)]
    if 1 < len(points) < len(values):
        axes.plot(*zip(*points, strict=True), color=color, linewidth=0.9, linestyle=":", alpha=0.7, label="_bridge")
    (drawn,) = axes.plot(
        rounds,
        values,
        color=color,
        linewidth=1.6,
        linestyle=DASHES[(index // len(theme.series)) % len(DASHES)],
        marker=MARKERS[index % len(MARKERS)] if len(points) <= MAX_MARKED_POINTS else "",
        markersize=5,
        markeredgecolor=theme.card,
        markeredgewidth=0.8,
        label=label,
    )
    return drawn


def draw_client_series(axes: Axes, rounds: Sequence[int], series: Mapping[str, Sequence[float]], theme: Theme) -> None:
    """Draw one series per client; above `MAX_NAMED_CLIENTS`, gray series or their range, and their mean."""
    if len(series) <= MAX_NAMED_CLIENTS:
        for index, (name, values) in enumerate(series.items()):
            draw_series(axes, rounds, values, (index, shorten_label(name, 24)), theme)
        return
    by_round = [[v for v in values if not isnan(v)] for values in zip(*series.values(), strict=True)]
    if len(series) <= MAX_DRAWN_CLIENTS:
        lines = [np.column_stack((rounds, values)) for values in series.values()]
        label = f"each of {len(series)} clients"
        axes.add_collection(LineCollection(lines, colors=theme.muted, linewidths=0.8, alpha=0.45, label=label))
        x, y = np.concatenate(lines).T
        axes.scatter(x, y, s=2, color=theme.muted, alpha=0.45, linewidths=0, label="_client")
    elif any(by_round):
        low, high = zip(*(np.quantile(v, (0.05, 0.95)) if v else (nan, nan) for v in by_round), strict=True)
        label = f"middle 90 % of {len(series)} clients"
        axes.fill_between(rounds, low, high, color=theme.muted, alpha=0.25, linewidth=0, label=label)
        axes.vlines(rounds, low, high, color=theme.muted, alpha=0.6, linewidth=1.2, label="_range")
    means = [mean_or_none(values) for values in by_round]
    draw_series(axes, rounds, [nan if v is None else v for v in means], (0, "mean of the clients"), theme)


def style_axes(axes: Axes, title: str, quantity: str, theme: Theme) -> None:
    """Set title, y label with its unit, x label, grid and colors."""
    axes.set_facecolor(theme.card)
    axes.set_title(shorten_label(title, 60), loc="left", color=theme.text, fontsize=11.5, fontweight="bold", y=1.055)
    axes.set_ylabel(quantity, color=theme.muted, fontsize=9.5)
    axes.set_xlabel("round", color=theme.muted, fontsize=9.5)
    axes.tick_params(colors=theme.muted, labelsize=9, length=0)
    axes.yaxis.get_offset_text().set_color(theme.muted)
    axes.grid(axis="y", color=theme.line, linewidth=0.9)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(theme.line)


def finish_axes(axes: Axes, rounds: Sequence[int], theme: Theme, legend: bool = True) -> None:
    """Set integer ticks on the x axis and the legend, or a note if nothing was drawn but NaN; call it after drawing."""
    lines = [np.asarray(drawn.get_ydata(), float) for drawn in axes.get_lines()]
    has_values = any(not np.isnan(values).all() for values in lines) or bool(axes.collections or axes.patches)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=10, min_n_ticks=1))
    if rounds:
        margin = max(0.25, 0.03 * (rounds[-1] - rounds[0]))
        axes.set_xlim(rounds[0] - margin, rounds[-1] + margin)
    if not has_values:
        note_missing_values(axes, theme)
    elif legend:
        axes.legend(frameon=False, fontsize=9, labelcolor=theme.text, loc="best")


def note_missing_values(axes: Axes, theme: Theme) -> None:
    """Write into empty axes that nothing was measured."""
    axes.text(0.5, 0.5, "nothing measured", transform=axes.transAxes, ha="center", color=theme.muted)
    axes.set_yticks([])


def label_end_points(axes: Axes, rounds: Sequence[int], values: Sequence[float], theme: Theme) -> None:
    """Write the first and the last value beside their points."""
    points = measured_points(rounds, values)
    style: dict[str, Any] = {
        "textcoords": "offset points",
        "color": theme.text,
        "fontsize": 10,
        "fontweight": "bold",
        "zorder": 6,
    }
    for x, y in points[:1]:
        axes.annotate(f"{y:.3f}", (x, y), (9, 5), ha="left", **style)
    for x, y in points[1:][-1:]:
        axes.annotate(f"{y:.3f}", (x, y), (-9, -14), ha="right", **style)


def add_footnote(figure: Figure, text: str, theme: Theme) -> None:
    """Write how the numbers were measured below the chart."""
    figure.supxlabel(shorten_label(text, 220), color=theme.muted, fontsize=8.5, x=0.01, ha="left")

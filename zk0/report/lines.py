"""How a chart's axes and lines look: one style for all charts of a session."""

from collections.abc import Mapping, Sequence
from io import BytesIO
from math import isnan, nan
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from zk0.report.metrics import mean
from zk0.report.palette import Theme

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "h")
DASHES = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)))
MOST_NAMED_LINES = 10
"""With more clients than this, single lines turn grey and their mean is drawn instead."""


def png(figure: Figure, dpi: int = 150) -> bytes:
    """The figure as PNG bytes, the same bytes for the same figure."""
    content = BytesIO()
    FigureCanvasAgg(figure)
    figure.savefig(content, format="png", dpi=dpi, metadata={"Software": None})
    return content.getvalue()


def known(rounds: Sequence[int], values: Sequence[float]) -> list[tuple[int, float]]:
    """The points that were measured."""
    return [(x, y) for x, y in zip(rounds, values, strict=True) if not isnan(y)]


def short(name: str, most: int = 38) -> str:
    """A name as a chart can print it: one line, at most `most` characters, no mathematics, in the legend."""
    plain = "".join(c if c.isprintable() else " " for c in name)
    cut = plain if len(plain) <= most else f"{plain[: most - 1]}…"
    return (f" {cut}" if cut.startswith("_") else cut).replace("$", r"\$")


def line(axes: Axes, rounds: Sequence[int], values: Sequence[float], at: tuple[int, str], theme: Theme) -> Line2D:
    """One series with gaps where it is NaN; `at` is its place in the palette and its label. Dots lead over a gap."""
    index, label = at
    points = known(rounds, values)
    colour = theme.series[index % len(theme.series)]
    if 1 < len(points) < len(values):
        axes.plot(*zip(*points, strict=True), color=colour, linewidth=0.9, linestyle=":", alpha=0.7, label="_bridge")
    (drawn,) = axes.plot(
        rounds,
        values,
        color=colour,
        linewidth=1.6,
        linestyle=DASHES[(index // len(theme.series)) % len(DASHES)],
        marker=MARKERS[index % len(MARKERS)] if len(points) <= 40 else "",
        markersize=5,
        markeredgecolor=theme.card,
        markeredgewidth=0.8,
        label=label,
    )
    return drawn


def many(axes: Axes, rounds: Sequence[int], lines: Mapping[str, Sequence[float]], theme: Theme) -> None:
    """One series for each client, or grey ones and their mean when they are too many to name."""
    if len(lines) <= MOST_NAMED_LINES:
        for index, (name, values) in enumerate(lines.items()):
            line(axes, rounds, values, (index, short(name, 24)), theme)
        return
    for number, values in enumerate(lines.values()):
        label = f"each of {len(lines)} clients" if number == 0 else "_client"
        axes.plot(rounds, values, color=theme.muted, linewidth=0.8, alpha=0.45, marker=".", markersize=2, label=label)
    at_round = zip(*lines.values(), strict=True)
    centre = [mean([v for v in values if not isnan(v)]) for values in at_round]
    line(axes, rounds, [nan if v is None else v for v in centre], (0, "mean of the clients"), theme)


def dress(axes: Axes, title: str, quantity: str, theme: Theme) -> None:
    """Title, quantity with its unit, and a quiet frame."""
    axes.set_facecolor(theme.card)
    axes.set_title(short(title, 60), loc="left", color=theme.ink, fontsize=11.5, fontweight="bold", y=1.055)
    axes.set_ylabel(quantity, color=theme.muted, fontsize=9.5)
    axes.set_xlabel("round", color=theme.muted, fontsize=9.5)
    axes.tick_params(colors=theme.muted, labelsize=9, length=0)
    axes.yaxis.get_offset_text().set_color(theme.muted)
    axes.grid(axis="y", color=theme.line, linewidth=0.9)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(theme.line)


def finish(axes: Axes, rounds: Sequence[int], theme: Theme, legend: bool = True) -> None:
    """Whole rounds on the x axis, the legend, and a word where nothing was measured."""
    measured = any(not isnan(float(y)) for drawn in axes.get_lines() for y in np.asarray(drawn.get_ydata()))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=10, min_n_ticks=1))
    if rounds:
        room = max(0.25, 0.03 * (rounds[-1] - rounds[0]))
        axes.set_xlim(rounds[0] - room, rounds[-1] + room)
    if not measured:
        axes.text(0.5, 0.5, "nothing measured", transform=axes.transAxes, ha="center", color=theme.muted)
        axes.set_yticks([])
    elif legend:
        axes.legend(frameon=False, fontsize=9, labelcolor=theme.ink, loc="best")


def name_points(axes: Axes, rounds: Sequence[int], values: Sequence[float], theme: Theme) -> None:
    """Write the first and the last value beside their points."""
    points = known(rounds, values)
    beside: dict[str, Any] = {
        "textcoords": "offset points",
        "color": theme.ink,
        "fontsize": 10,
        "fontweight": "bold",
        "zorder": 6,
    }
    for x, y in points[:1]:
        axes.annotate(f"{y:.3f}", (x, y), (9, 5), ha="left", **beside)
    for x, y in points[1:][-1:]:
        axes.annotate(f"{y:.3f}", (x, y), (-9, -14), ha="right", **beside)


def foot(figure: Figure, text: str, theme: Theme) -> None:
    """How the numbers were measured, in small print."""
    figure.supxlabel(short(text, 220), color=theme.muted, fontsize=8.5, x=0.01, ha="left")

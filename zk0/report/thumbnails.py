"""Small pictures of a data set: its frames side by side, its joints over time."""

from collections.abc import Sequence
from math import ceil
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from zk0.report.lines import png, short
from zk0.report.palette import LIGHT, Theme

MOST_JOINTS = 12
"""Joints beyond these are not drawn: a humanoid's 26 would be unreadable."""


def thumbnail_sheet(rows: Sequence[tuple[str, Sequence[tuple[str, NDArray[np.uint8]]]]], theme: Theme = LIGHT) -> bytes:
    """PNG of pictures (H, W, 3) in labelled rows; each picture has its own caption."""
    columns = max((len(pictures) for _, pictures in rows), default=1)
    figure = Figure(figsize=(2.1 * columns, 1.9 * max(len(rows), 1)), facecolor=theme.card, layout="constrained")
    grid = figure.subplots(max(len(rows), 1), columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for line, (label, pictures) in zip(grid, rows, strict=False):
        for place, (axes, (caption, pixels)) in enumerate(zip(line, pictures, strict=False)):
            axes.imshow(pixels, interpolation="nearest")
            above = short(label) if place == 0 else ""
            axes.set_title(f"{above}\n{short(caption)}", fontsize=8, color=theme.ink, loc="left")
    return png(figure, dpi=80)


def joint_plot(
    motions: Sequence[tuple[str, NDArray[np.float64], NDArray[Any], NDArray[Any]]],
    names: Sequence[str],
    unit: str,
    theme: Theme = LIGHT,
) -> bytes:
    """PNG of one panel for each joint: state as a line, action dashed, one colour for each episode.

    `motions` are (label, seconds (T,), states (T, joints), actions (T, joints)).
    """
    joints = min(max((m[2].shape[1] for m in motions), default=1), MOST_JOINTS)
    lines = ceil(joints / 3)
    figure = Figure(figsize=(11, 2.2 * lines + 0.4), facecolor=theme.card, layout="constrained")
    panels = figure.subplots(lines, min(joints, 3), squeeze=False, sharex=True)
    for joint, axes in enumerate(panels.flat):
        if joint >= joints:
            axes.set_axis_off()
            continue
        for number, (label, seconds, states, actions) in enumerate(motions):
            colour = theme.series[number % len(theme.series)]
            if joint < states.shape[1]:
                axes.plot(seconds, states[:, joint], color=colour, linewidth=1.4, label=short(f"{label}: state"))
            if joint < actions.shape[1]:
                axes.plot(seconds, actions[:, joint], color=colour, linewidth=1, linestyle="--", label="action")
        axes.set_title(short(names[joint] if joint < len(names) else f"joint {joint}"), fontsize=9, color=theme.ink)
        axes.set_ylabel(short(unit), fontsize=8, color=theme.muted)
        axes.tick_params(labelsize=7, colors=theme.muted)
        axes.grid(color=theme.line, linewidth=0.6)
    for axes in panels[-1]:
        axes.set_xlabel("seconds", fontsize=8, color=theme.muted)
    if motions:
        figure.legend(*panels[0][0].get_legend_handles_labels(), loc="outside upper center", ncols=6, fontsize=8)
    return png(figure, dpi=80)


def preview_sections(
    pictures: Sequence[tuple[int, int, str, NDArray[np.uint8]]],
    motions: Sequence[tuple[str, NDArray[np.float64], NDArray[Any], NDArray[Any]]],
    names: Sequence[str],
    unit: str,
) -> list[tuple[str, bytes]]:
    """Titles and PNGs of what there is to see. `pictures` are (episode, frame, camera, pixels (H, W, 3))."""
    sections = []
    if pictures:
        places = dict.fromkeys((episode, camera) for episode, _, camera, _ in pictures)
        rows = [
            (
                f"episode {e}, {c}",
                [(f"frame {f}", p) for episode, f, camera, p in pictures if (episode, camera) == (e, c)],
            )
            for e, c in places
        ]
        sections.append(("Frames", thumbnail_sheet(rows)))
    if motions:
        sections.append(("Joints", joint_plot(motions, names, unit)))
    return sections

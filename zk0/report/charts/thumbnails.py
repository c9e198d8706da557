"""Preview images of a dataset: frames side by side, and joints over time."""

from collections.abc import Sequence
from math import ceil
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from zk0.report.charts.axes import figure_png, shorten_label
from zk0.report.palette import LIGHT_THEME, Theme

MAX_JOINTS = 12
"""Further joints are not drawn, because the panels of many joints (a humanoid has 26) would be unreadable."""


def thumbnail_sheet(
    rows: Sequence[tuple[str, Sequence[tuple[str, NDArray[np.uint8]]]]], theme: Theme = LIGHT_THEME
) -> bytes:
    """PNG of images in rows.

    Args:
        rows: the label of each row, and the caption and RGB pixels (H, W, 3) of each of its images.
        theme: colors.
    """
    columns = max((len(images) for _, images in rows), default=1)
    figure = Figure(figsize=(2.1 * columns, 1.9 * max(len(rows), 1)), facecolor=theme.card, layout="constrained")
    grid = figure.subplots(max(len(rows), 1), columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for line, (label, images) in zip(grid, rows, strict=False):
        for place, (axes, (caption, pixels)) in enumerate(zip(line, images, strict=False)):
            axes.imshow(pixels, interpolation="nearest")
            above = shorten_label(label) if place == 0 else ""
            axes.set_title(f"{above}\n{shorten_label(caption)}", fontsize=8, color=theme.text, loc="left")
    return figure_png(figure, dpi=80)


def joint_plot(
    motions: Sequence[tuple[str, NDArray[np.float64], NDArray[Any], NDArray[Any]]],
    names: Sequence[str],
    unit: str,
    theme: Theme = LIGHT_THEME,
) -> bytes:
    """PNG of one panel per joint, one color per episode; states are solid lines, actions dashed.

    Args:
        motions: label, seconds (T,), states (T, joints) and actions (T, joints) of each episode.
        names: of the joints.
        unit: of states and actions.
        theme: colors.
    """
    joints = min(max((m[2].shape[1] for m in motions), default=1), MAX_JOINTS)
    lines = ceil(joints / 3)
    figure = Figure(figsize=(11, 2.2 * lines + 0.4), facecolor=theme.card, layout="constrained")
    panels = figure.subplots(lines, min(joints, 3), squeeze=False, sharex=True)
    for joint, axes in enumerate(panels.flat):
        if joint >= joints:
            axes.set_axis_off()
            continue
        for number, (label, seconds, states, actions) in enumerate(motions):
            color = theme.series[number % len(theme.series)]
            if joint < states.shape[1]:
                axes.plot(seconds, states[:, joint], color=color, linewidth=1.4, label=shorten_label(f"{label}: state"))
            if joint < actions.shape[1]:
                axes.plot(seconds, actions[:, joint], color=color, linewidth=1, linestyle="--", label="action")
        axes.set_title(
            shorten_label(names[joint] if joint < len(names) else f"joint {joint}"), fontsize=9, color=theme.text
        )
        axes.set_ylabel(shorten_label(unit), fontsize=8, color=theme.muted)
        axes.tick_params(labelsize=7, colors=theme.muted)
        axes.grid(color=theme.line, linewidth=0.6)
    for axes in panels[-1]:
        axes.set_xlabel("seconds", fontsize=8, color=theme.muted)
    if motions:
        figure.legend(*panels[0][0].get_legend_handles_labels(), loc="outside upper center", ncols=6, fontsize=8)
    return figure_png(figure, dpi=80)


def preview_sections(
    images: Sequence[tuple[int, int, str, NDArray[np.uint8]]],
    motions: Sequence[tuple[str, NDArray[np.float64], NDArray[Any], NDArray[Any]]],
    names: Sequence[str],
    unit: str,
) -> list[tuple[str, bytes]]:
    """Title and PNG of each section of a preview; without images or motions, their section is left out.

    Args:
        images: episode, frame, camera and RGB pixels (H, W, 3) of each image.
        motions: as in `joint_plot`.
        names: of the joints.
        unit: of states and actions.
    """
    sections = []
    if images:
        places = dict.fromkeys((episode, camera) for episode, _, camera, _ in images)
        rows = [
            (
                f"episode {e}, {c}",
                [(f"frame {f}", p) for episode, f, camera, p in images if (episode, camera) == (e, c)],
            )
            for e, c in places
        ]
        sections.append(("Frames", thumbnail_sheet(rows)))
    if motions:
        sections.append(("Joints", joint_plot(motions, names, unit)))
    return sections

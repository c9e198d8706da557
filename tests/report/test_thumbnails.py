"""Pictures of a data set: legible, whatever its cameras and joints are called."""

import io

import imageio.v3 as imageio
import numpy as np

from zk0.report.thumbnails import MOST_JOINTS, joint_plot, preview_sections, thumbnail_sheet

RED = np.zeros((40, 60, 3), np.uint8) + np.array([250, 10, 10], np.uint8)
GREEN = np.zeros((40, 60, 3), np.uint8) + np.array([10, 250, 10], np.uint8)


def pixels(png: bytes) -> np.ndarray:
    return imageio.imread(io.BytesIO(png))[..., :3]


def share(image: np.ndarray, colour: np.ndarray) -> float:
    return float((np.abs(image.astype(int) - colour[0, 0].astype(int)).max(axis=2) < 8).mean())


def test_every_picture_is_on_the_sheet() -> None:
    sheet = pixels(thumbnail_sheet([("a", [("frame 0", RED), ("frame 5", RED)]), ("b", [("frame 0", GREEN)])]))
    assert share(sheet, RED) > 0.1
    assert 1.8 < share(sheet, RED) / share(sheet, GREEN) < 2.2


def test_a_joint_that_moves_draws_another_line_than_one_that_stays() -> None:
    seconds = np.arange(20) / 10
    moving = np.sin(seconds)[:, None] * np.ones((1, 2))
    still = np.ones((20, 2))
    assert joint_plot([("e", seconds, moving, moving)], ["a", "b"], "degrees") != joint_plot(
        [("e", seconds, still, still)], ["a", "b"], "degrees"
    )


def test_names_that_look_like_mathematics_or_markup_are_drawn() -> None:
    motion = ("episode $", np.arange(3.0), np.ones((3, 30)), np.ones((3, 26)))
    sections = preview_sections([(0, 1, "_$x^{", RED)], [motion], ["$\\frac"] * 2, "$unit")
    assert [title for title, _ in sections] == ["Frames", "Joints"]
    assert all(pixels(png).size for _, png in sections)
    assert MOST_JOINTS < 26


def test_nothing_to_see_is_no_section() -> None:
    assert preview_sections([], [], [], "degrees") == []

"""Preview images of a dataset, for any names of cameras and joints."""

import io

import imageio.v3 as imageio
import numpy as np

from zk0.report.charts.thumbnails import MAX_JOINTS, joint_plot, preview_sections, thumbnail_sheet

RED = np.zeros((40, 60, 3), np.uint8) + np.array([250, 10, 10], np.uint8)
GREEN = np.zeros((40, 60, 3), np.uint8) + np.array([10, 250, 10], np.uint8)


def pixels(png: bytes) -> np.ndarray:
    return imageio.imread(io.BytesIO(png))[..., :3]


def share(image: np.ndarray, color: np.ndarray) -> float:
    return float((np.abs(image.astype(int) - color[0, 0].astype(int)).max(axis=2) < 8).mean())


def test_every_image_is_on_the_sheet() -> None:
    sheet = pixels(thumbnail_sheet([("a", [("frame 0", RED), ("frame 5", RED)]), ("b", [("frame 0", GREEN)])]))
    assert share(sheet, RED) > 0.1
    assert 1.8 < share(sheet, RED) / share(sheet, GREEN) < 2.2


def test_moving_and_resting_joints_are_drawn_differently() -> None:
    seconds = np.arange(20) / 10
    moving = np.sin(seconds)[:, None] * np.ones((1, 2))
    still = np.ones((20, 2))
    assert joint_plot([("e", seconds, moving, moving)], ["a", "b"], "degrees") != joint_plot(
        [("e", seconds, still, still)], ["a", "b"], "degrees"
    )


def test_names_with_special_characters_are_drawn() -> None:
    motion = ("episode $", np.arange(3.0), np.ones((3, 30)), np.ones((3, 26)))
    sections = preview_sections([(0, 1, "_$x^{", RED)], [motion], ["$\\frac"] * 2, "$unit")
    assert [title for title, _ in sections] == ["Frames", "Joints"]
    assert all(pixels(png).size for _, png in sections)
    assert MAX_JOINTS < 26


def test_no_section_without_images_and_motions() -> None:
    assert preview_sections([], [], [], "degrees") == []

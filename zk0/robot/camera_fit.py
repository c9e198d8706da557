"""Compare the first pictures of a robot with those of recorded episodes."""

from collections.abc import Callable, Iterator, Mapping
from itertools import permutations

import numpy as np
from numpy.typing import NDArray

from zk0.data.picture_cells import picture_cells
from zk0.records import CELLS, CameraReference, Mismatch

Picture = NDArray[np.uint8]
Cells = NDArray[np.float64]
DARK = 12.0
"""Mean of a picture, 0 to 255, at and below which it is black."""
UNIFORM = 4.0
"""Standard deviation of a picture's pixels at and below which it shows nothing."""
SMALLEST_DISTANCE = 25.0
"""Mean difference of cells, 0 to 255, that light and cubes at other places may make."""
USUAL_DISTANCES = 3.0
"""So many times the usual distance between recorded first pictures is still a recorded view."""
CLEARLY_BETTER = 0.6
"""A picture is changed in a known way if undoing the change divides its distance by at least 1 / this..."""
NOTICEABLE = 10.0
"""...and its distance is at least this."""
MAX_CAMERAS_TO_PERMUTE = 5
_CHANGES: Mapping[str, tuple[Callable[[Picture], Picture], str]] = {
    "red and blue exchanged": (lambda p: p[:, :, ::-1], "set the camera's color_mode to rgb"),
    "upside down": (lambda p: p[::-1, ::-1], "turn the camera, or set its rotation to 180"),
    "turned by 90 degrees": (lambda p: np.rot90(p), "turn the camera, or set its rotation"),
    "turned by -90 degrees": (lambda p: np.rot90(p, -1), "turn the camera, or set its rotation"),
    "mirrored": (lambda p: p[:, ::-1], "switch mirroring off in the camera's settings"),
}
"""What may be wrong with a picture -> how to undo it, and what to do."""


def camera_mismatches(pictures: Mapping[str, Picture], references: tuple[CameraReference, ...]) -> Iterator[Mismatch]:
    """Yield a mismatch for each camera that is missing or black, exchanged for another, or shows another view."""
    missing = [one.name for one in references if one.name not in pictures]
    for name in missing:
        yield Mismatch(
            rule="camera-missing",
            found=f"cameras {', '.join(pictures) or 'none'}",
            expected=f"one named {name}",
            advice=f"connect it and name it: --camera {name}=NUMBER",
        )
    empty = {one.name: fault for one in references if not missing and (fault := _empty_picture(one, pictures))}
    yield from empty.values()
    if not missing and not empty:
        yield from _exchanged_cameras(pictures, references) or _other_views(pictures, references)


def reference_distance(picture: Picture, reference: CameraReference) -> float:
    """Return the mean difference of a picture's cells to those of the recorded picture that is most like it."""
    return float(np.abs(_recorded(reference) - picture_cells(picture)).mean(axis=(1, 2, 3)).min())


def usual_distance(reference: CameraReference) -> float:
    """Return the median distance of a recorded picture to the one most like it among the others; 0 for one picture."""
    cells = _recorded(reference)
    apart = np.abs(cells[:, None] - cells[None]).mean(axis=(2, 3, 4))
    np.fill_diagonal(apart, np.inf)
    return float(np.median(apart.min(axis=0))) if len(cells) > 1 else 0.0


def _recorded(reference: CameraReference) -> Cells:
    return np.array(reference.pictures, dtype=np.float64).reshape(-1, CELLS, CELLS, 3)


def _empty_picture(reference: CameraReference, pictures: Mapping[str, Picture]) -> Mismatch | None:
    """Return what is wrong with a picture that shows nothing although recorded ones do."""
    picture, usual = pictures[reference.name], float(_recorded(reference).mean())
    brightness, spread = float(picture.mean()), float(picture.std())
    dark = brightness <= DARK < usual
    if not dark and spread > UNIFORM:
        return None
    return Mismatch(
        rule="camera-black" if dark else "camera-uniform",
        found=f"{reference.name} of brightness {brightness:.0f} with deviations of {spread:.0f} (of 255)",
        expected=f"brightness {usual:.0f}, as in the recordings, and something to see",
        advice="take the cap off, switch the light on, and look at the camera with lerobot-find-cameras",
    )


def _exchanged_cameras(pictures: Mapping[str, Picture], references: tuple[CameraReference, ...]) -> list[Mismatch]:
    """Return the mismatch if the pictures fit the references clearly better in another order."""
    if len(references) > MAX_CAMERAS_TO_PERMUTE:
        return []
    names = [one.name for one in references]
    costs = np.array([[reference_distance(pictures[name], one) for name in names] for one in references])
    orders = list(permutations(range(len(names))))
    sums = [float(sum(costs[row, column] for row, column in enumerate(order))) for order in orders]
    best = orders[int(np.argmin(sums))]
    if min(sums) >= CLEARLY_BETTER * sums[0] or sums[0] < NOTICEABLE * len(names):
        return []
    moved = [f"{names[column]} shows what {names[row]} should" for row, column in enumerate(best) if row != column]
    return [
        Mismatch(
            rule="cameras-exchanged",
            found="; ".join(moved),
            expected="each camera under its own name",
            advice="exchange the numbers in --camera NAME=NUMBER",
        )
    ]


def _other_views(pictures: Mapping[str, Picture], references: tuple[CameraReference, ...]) -> list[Mismatch]:
    return [fault for one in references if (fault := _other_view(pictures[one.name], one))]


def _other_view(picture: Picture, reference: CameraReference) -> Mismatch | None:
    """Return the mismatch of a picture that was changed in a known way, or is unlike all recorded ones."""
    distance = reference_distance(picture, reference)
    undone = {what: reference_distance(undo(picture), reference) for what, (undo, _) in _CHANGES.items()}
    what = min(undone, key=lambda one: undone[one])
    changed = distance >= NOTICEABLE and undone[what] < CLEARLY_BETTER * distance
    allowed = max(SMALLEST_DISTANCE, USUAL_DISTANCES * usual_distance(reference))
    if not changed and distance <= allowed:
        return None
    found = f"a picture that looks {what}" if changed else f"a mean color difference of {distance:.0f} (of 255)"
    advice = _CHANGES[what][1] if changed else "place camera and light as in the recordings"
    return Mismatch(
        rule="camera-view",
        found=f"{reference.name}: {found}",
        expected=f"a view as in the recordings, with a difference of at most {allowed:.0f}",
        advice=advice,
    )

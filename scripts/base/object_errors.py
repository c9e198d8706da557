"""How well the places of cube and target are known, in millimeters."""

import sys

import torch
from base_columns import CAMERAS
from torch import Tensor

OBJECTS = ("cube", "goal")


def report_errors(what: str, predicted: Tensor, targets: Tensor, unit: Tensor) -> None:
    """Print median and 80 % errors of positions in millimeters.

    Args:
        what: the frames.
        predicted: (frames, OBJECTS, cameras, TARGETS).
        targets: the same shape, NaN where unknown.
        unit: (cameras, TARGETS) of both, in meters.
    """
    errors = ((predicted - targets)[..., :3] * unit[:, :3]).norm(dim=-1) * 1000
    for index, name in enumerate(OBJECTS):
        for camera, of_camera in enumerate(CAMERAS):
            known = errors[:, index, camera]
            middle, most = known[~known.isnan()].quantile(torch.tensor([0.5, 0.8], device=known.device)).tolist()
            sys.stdout.write(f"{what}, {name}, {of_camera}: median error {middle:.1f} mm, 80 % below {most:.1f} mm\n")
    sys.stdout.flush()

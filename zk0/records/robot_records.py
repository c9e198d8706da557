"""Records of a robot: what it must be like for a policy, what it shows, and what does not fit."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from zk0.records.bounds import Name, Text
from zk0.records.dataset_records import JointUnits, Moments
from zk0.records.record import Record

CELLS = 4
"""Rows and columns of the cells whose mean colors describe a picture."""
MAX_STARTS = 20
"""Most episodes whose first pictures a robot reference holds."""
_Channel = Annotated[int, Field(ge=0, le=255)]
_Picture = Annotated[tuple[_Channel, ...], Field(min_length=3 * CELLS**2, max_length=3 * CELLS**2)]


class CameraReference(Record):
    """The first pictures of one camera in recorded episodes."""

    name: Name
    """Without `observation.images.`."""
    pictures: tuple[_Picture, ...] = Field(min_length=1, max_length=MAX_STARTS)
    """By episode: mean red, green and blue of each cell, row by row, 0 to 255."""


class RobotReference(Record):
    """What a robot must be like for a policy: the dataset contract, and how recorded episodes begin."""

    cameras: tuple[CameraReference, ...] = Field(min_length=1, max_length=100)
    joints: tuple[Name, ...] = Field(min_length=1, max_length=1000)
    """Names of the dimensions of state and action, in order."""
    units: JointUnits
    fps: float = Field(gt=0, le=1000)
    """Actions per second."""
    tasks: tuple[Text, ...] = Field(max_length=100_000)
    """Task texts of the training data; empty: its episodes have none."""
    state: Moments
    """Of the states of the training data."""
    start: Moments | None
    """Of the first states of recorded episodes; None: no evaluation set has these joints and units."""

    @model_validator(mode="after")
    def _one_value_for_each_joint(self) -> Self:
        for what, moments in (("state", self.state), ("start", self.start)):
            if moments is None:
                continue
            counts = {len(moments.mean), len(moments.std), len(moments.min), len(moments.max)}
            if counts != {len(self.joints)}:
                raise ValueError(f"{what} has {sorted(counts)} values, expected {len(self.joints)}, one for each joint")
        return self


class Mismatch(Record):
    """One reason why a policy should not move a robot."""

    rule: str
    found: str
    expected: str
    advice: str

    def __str__(self) -> str:
        return f"{self.rule}: found {self.found}, expected {self.expected}; {self.advice}"

"""Known names of an SO-100 or SO-101 arm's joints, and the calibration that each of them stands for.

Datasets of the same arm differ in their joint names, because LeRobot changed its calibration: with the names, the units
and the zero positions changed (huggingface.co/docs/lerobot/backwardcomp, pull request 777, June 2025). Values of two
calibrations cannot be pooled; a dataset belongs to the group of its calibration and units.
"""

from collections.abc import Sequence

from zk0.records import CalibrationName, JointUnits, Record
from zk0.settings.dataset_settings import SO101_JOINTS

_PLAIN_NAMES = tuple(name.removesuffix(".pos") for name in SO101_JOINTS)


class Calibration(Record):
    """One calibration of an SO-100 or SO-101 arm, recognized by the names of its joints."""

    name: CalibrationName
    joints: tuple[str, ...]
    """As `meta/info.json` names them, in the order of the motors."""
    units: JointUnits | None
    """Units of all datasets of this calibration; None: they may be in several units."""
    source: str


CALIBRATIONS = (
    Calibration(
        name="pos",
        joints=SO101_JOINTS,
        units=None,
        source="LeRobot since June 2025 (pull request 777): zero in the middle of each joint's range; -100..100, or "
        "degrees with the robot's `use_degrees`, which is the default since LeRobot 0.6. Seen in meta/info.json of "
        "lerobot/svla_so101_pickplace (revision f641879)",
    ),
    Calibration(
        name="main",
        joints=tuple(f"main_{name}" for name in _PLAIN_NAMES),
        units="degrees",
        source="LeRobot before June 2025: degrees, zero with the arm stretched out horizontally (page `backwardcomp` "
        "of LeRobot's documentation). Seen in meta/info.json of lerobot/svla_so100_pickplace (revision 728583b)",
    ),
    Calibration(
        name="plain",
        joints=_PLAIN_NAMES,
        units=None,
        source="recorders other than LeRobot's, each with its own calibration. Seen in meta/info.json of "
        "Servo7/stack-cubes",
    ),
)
"""All known calibrations; the table in docs/so-arms.md is checked against it."""


def recognize_calibration(joints: Sequence[str]) -> Calibration | None:
    """Return the calibration whose joints have these names, in this order; None if no known one has.

    >>> recognize_calibration(["main_" + name.removesuffix(".pos") for name in SO101_JOINTS]).name
    'main'
    """
    return next((known for known in CALIBRATIONS if known.joints == tuple(joints)), None)

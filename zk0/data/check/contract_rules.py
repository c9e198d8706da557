"""Rules of the federation's contract: joints, cameras, frame rate and units that all datasets must share."""

from collections.abc import Iterator, Mapping, Sequence

from zk0.data.calibrations import recognize_calibration
from zk0.data.check.rule import RuleGroup, Violation
from zk0.data.units import Units
from zk0.errors import DatasetError
from zk0.name_lists import join_names
from zk0.records import CAMERA_PREFIX, DatasetReport, Finding, JointUnits
from zk0.settings.dataset_settings import ContractSettings

CONTRACT_RULES = RuleGroup[[DatasetReport, ContractSettings, Mapping[str, str], JointUnits | None], Violation](
    "Contract of the federation", __name__
)
_MOST_NAMES = 8
_EXCLUDED_BY_VALUES = {
    "degrees": ("ticks",),
    "radians": ("degrees", "ticks", "normalized"),
    "normalized": ("degrees", "ticks"),
}
"""Stated units -> units detected from values that are too large for them."""


def check_contract(
    report: DatasetReport,
    contract: ContractSettings,
    rename_map: Mapping[str, str] | None = None,
    units: JointUnits | None = None,
) -> tuple[Finding, ...]:
    """Return a finding for everything in which a dataset differs from the contract.

    Cameras that the contract does not name are allowed: the policy does not use them.

    Args:
        report: what `check_dataset` found out about the dataset.
        contract: what the federation requires.
        rename_map: feature key in the dataset (`observation.images.top`) -> key in the contract
            (`observation.images.overhead`); names of joints too (`main_shoulder_pan` -> `shoulder_pan.pos`).
        units: those that the session states for the dataset; None: it states none.
    """
    return tuple(CONTRACT_RULES.findings(report, contract, dict(rename_map or {}), units))


def with_contract(
    report: DatasetReport, contract: ContractSettings, rename_map: Mapping[str, str], units: JointUnits | None
) -> DatasetReport:
    """Return the report with the findings of the contract, the dataset's units and its group.

    The group is named by the calibration, if the contract allows other groups. Arguments as for `check_contract`.
    """
    known = recognize_calibration(_renamed(report.state_names, rename_map))
    return report.model_copy(
        update={
            "findings": (*report.findings, *check_contract(report, contract, rename_map, units)),
            "units": known_units(report, units),
            "calibration": known.name if known and contract.other_groups else None,
        }
    )


def known_units(report: DatasetReport, stated: JointUnits | None) -> Units | None:
    """Return the units that the session states, else those of known joint names, else those that the values allow."""
    if stated is not None:
        return stated
    known = recognize_calibration(report.state_names)
    return known.units if known and known.units else report.units


def _renamed(names: Sequence[str], rename_map: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(rename_map.get(name, name) for name in names)


def _is_other_group(joints: tuple[str, ...], contract: ContractSettings) -> bool:
    """Whether the contract admits these joints because they are those of an SO arm under other known names."""
    both_known = recognize_calibration(joints) and recognize_calibration(contract.joints)
    return contract.other_groups and bool(both_known)


def check_same_rate(reports: Mapping[str, DatasetReport], contract: ContractSettings) -> None:
    """Raise unless all datasets have one frame rate: the contract's, or that of the first one if it has none.

    Args:
        reports: name of a client or an evaluation set -> the report of its dataset.
        contract: what the federation requires.

    Raises:
        DatasetError: names every dataset of another rate.
    """
    rates = {name: report.fps for name, report in reports.items()}
    expected = contract.fps or next(iter(rates.values()))
    if others := [f"{name} at {found or 0:g} fps" for name, found in rates.items() if found != expected]:
        whose = "the contract" if contract.fps else next(iter(rates))
        raise DatasetError(
            f"{'; '.join(others)}; expected {expected or 0:g} fps as {whose} has: action chunks of another rate mean "
            "other durations; bring data of one rate"
        )


@CONTRACT_RULES.rule("contract-rename")
def contract_rename(
    report: DatasetReport, contract: ContractSettings, names: Mapping[str, str], stated: JointUnits | None
) -> Iterator[Violation]:
    """Every camera that the rename_map renames is in the dataset."""
    known = {*report.cameras, *(f"{CAMERA_PREFIX}{c}" for c in report.cameras)}
    typos = [old for old, new in names.items() if new.startswith(CAMERA_PREFIX) and old not in known]
    if typos:
        yield Violation(
            where="rename_map",
            found=f"{join_names(typos, _MOST_NAMES)}, which the dataset does not have",
            expected=f"one of its cameras ({join_names(report.cameras, _MOST_NAMES)})",
        )


@CONTRACT_RULES.rule("contract-dimensions")
def contract_dimensions(
    report: DatasetReport, contract: ContractSettings, names: Mapping[str, str], stated: JointUnits | None
) -> Iterator[Violation]:
    """State and action have as many dimensions as the contract has joints; others belong to another robot."""
    expected = contract.joints
    for what, found in (("state", report.state_names), ("action", report.action_names)):
        if len(found) != len(expected):
            yield Violation(
                where=what,
                found=f"{len(found)} dimensions ({join_names(found, _MOST_NAMES)})",
                expected=f"{len(expected)} ({', '.join(expected)}): this is another robot",
            )


@CONTRACT_RULES.rule("contract-joints")
def contract_joints(
    report: DatasetReport, contract: ContractSettings, names: Mapping[str, str], stated: JointUnits | None
) -> Iterator[Violation]:
    """State and action have the contract's joints in its order, after renaming; both have the same names.

    With `contract.other_groups`, other known names of an SO arm's joints are admitted, too.
    """
    expected = contract.joints
    if _is_other_group(_renamed(report.state_names, names), contract) and report.action_names == report.state_names:
        return
    for what, found in (("state", report.state_names), ("action", report.action_names)):
        renamed = _renamed(found, names)
        if len(found) == len(expected) and renamed != expected:
            pairs = [f"{old} -> {new}" for old, new in zip(found, expected, strict=True) if names.get(old, old) != new]
            yield Violation(
                where=what,
                found=join_names(renamed, _MOST_NAMES),
                expected=f"{', '.join(expected)}; if they are the same joints, map in rename_map: {', '.join(pairs)}"
                + _other_group_hint(found, contract),
            )


@CONTRACT_RULES.rule("contract-cameras")
def contract_cameras(
    report: DatasetReport, contract: ContractSettings, names: Mapping[str, str], stated: JointUnits | None
) -> Iterator[Violation]:
    """The dataset has every camera of the contract, after renaming, and no two cameras get one name."""
    found = report.cameras
    renamed = {names.get(f"{CAMERA_PREFIX}{c}", names.get(c, c)).removeprefix(CAMERA_PREFIX): c for c in found}
    unused = [c for name, c in renamed.items() if name not in contract.cameras]
    if len(renamed) < len(found):
        yield Violation(
            where="rename_map",
            found=f"two cameras under one name after renaming {', '.join(found)}",
            expected="one camera for each name",
        )
    for camera in contract.cameras:
        if camera not in renamed:
            hint = " or ".join(f"{CAMERA_PREFIX}{c}" for c in unused) or "a camera (it has none to spare)"
            yield Violation(
                where=f"{CAMERA_PREFIX}{camera}",
                found=f"cameras {', '.join(found) or 'none'}",
                expected=f"camera {camera}; map {hint} -> {CAMERA_PREFIX}{camera} in rename_map",
            )


@CONTRACT_RULES.rule("contract-fps")
def contract_fps(
    report: DatasetReport, contract: ContractSettings, names: Mapping[str, str], stated: JointUnits | None
) -> Iterator[Violation]:
    """The dataset has the frame rate of the contract, if the contract has one."""
    if contract.fps is not None and report.fps != contract.fps:
        yield Violation(
            where="fps",
            found="unknown" if report.fps is None else f"{report.fps:g}",
            expected=f"{contract.fps:g}: action chunks of another rate mean other durations",
        )


@CONTRACT_RULES.rule(
    "contract-units",
    repairs=("convert-units",),
    repair_if="they are ticks or radians and the contract's unit is degrees",
)
def contract_units(
    report: DatasetReport, contract: ContractSettings, names: Mapping[str, str], stated: JointUnits | None
) -> Iterator[Violation]:
    """States and actions are not known to be in another unit than the contract's.

    With `contract.other_groups`, they may be in any unit but servo ticks, and the unit must be known.
    """
    units, expected = known_units(report, stated), f"{contract.units}: one normalization serves all clients"
    if contract.other_groups and units is None:
        yield Violation(
            where="state, action",
            found=f"values that fit several units, and joints ({join_names(report.state_names, 2)}) of no one unit",
            expected='the unit, stated beside the dataset: units = "degrees" or "normalized" (LeRobot\'s -100..100)',
        )
    elif units is not None and units != contract.units and (not contract.other_groups or units == "ticks"):
        yield Violation(
            where="state, action",
            found=units,
            expected=expected
            + _stated_hint(report, contract, stated)
            + _other_group_hint(report.state_names, contract),
            repairable=units in ("ticks", "radians") and contract.units == "degrees",
        )


@CONTRACT_RULES.rule("contract-units-unknown", severity="warning")
def contract_units_unknown(
    report: DatasetReport, contract: ContractSettings, names: Mapping[str, str], stated: JointUnits | None
) -> Iterator[Violation]:
    """The units are stated where joint names and values of an SO arm leave open whether they are the contract's.

    Recordings of the simulator are in degrees; they need no statement.
    """
    is_open = not contract.other_groups and known_units(report, stated) is None
    if is_open and recognize_calibration(_renamed(report.state_names, names)) and not report.dataset.startswith("sim:"):
        yield Violation(
            where="state, action",
            found="values that fit degrees and LeRobot's -100..100 alike",
            expected=f'{contract.units}; if they are, state it beside the dataset: units = "{contract.units}"',
        )


@CONTRACT_RULES.rule("contract-stated-units")
def contract_stated_units(
    report: DatasetReport, contract: ContractSettings, names: Mapping[str, str], stated: JointUnits | None
) -> Iterator[Violation]:
    """States and actions can be in the units that the session or the joint names state."""
    units = known_units(report, stated)
    if units is not None and report.units in _EXCLUDED_BY_VALUES.get(units, ()):
        source = "the session states" if stated else f"joints named {report.state_names[0]} are"
        yield Violation("state, action", f"values in {report.units}", f"{units}, as {source}")


def _stated_hint(report: DatasetReport, contract: ContractSettings, stated: JointUnits | None) -> str:
    """Return how to contradict a unit that only the values suggest, if they allow the contract's, too."""
    known = recognize_calibration(report.state_names)
    is_certain = stated or (known and known.units) or report.units in _EXCLUDED_BY_VALUES[contract.units]
    return (
        "" if is_certain else f'; if they are {contract.units}, state it beside the dataset: units = "{contract.units}"'
    )


def _other_group_hint(joints: Sequence[str], contract: ContractSettings) -> str:
    if contract.other_groups or not (recognize_calibration(joints) and recognize_calibration(contract.joints)):
        return ""
    return "; or set contract.other_groups = true, which pools the statistics of such datasets separately"

"""Whether a data set fits the federation, and if not, what to map."""

from collections.abc import Iterator, Mapping

from zk0.errors import DatasetError
from zk0.records import CAMERA_PREFIX, DatasetReport, Finding
from zk0.session import ContractSettings


def check_contract(
    report: DatasetReport, contract: ContractSettings, rename_map: Mapping[str, str] | None = None
) -> tuple[Finding, ...]:
    """Where the data set differs from the contract.

    `rename_map` maps feature keys of the data set (`observation.images.top`) to those of the contract
    (`observation.images.overhead`); names of joints may be mapped too (`main_shoulder_pan` to
    `shoulder_pan.pos`). Cameras that the contract does not ask for are no fault: the policy never sees them.
    """
    names = dict(rename_map or {})
    return (
        *_unknown_renames(report, names),
        *_joints(report.state_names, contract, names, "state"),
        *_joints(report.action_names, contract, names, "action"),
        *_cameras(report.cameras, contract, names),
        *_fps(report.fps, contract),
        *_units(report, contract),
    )


def _joints(found: tuple[str, ...], contract: ContractSettings, names: dict[str, str], what: str) -> Iterator[Finding]:
    expected = contract.joints
    if len(found) != len(expected):
        yield Finding(
            rule="contract-dimensions",
            where=what,
            found=f"{len(found)} dimensions ({_some(found)})",
            expected=f"{len(expected)} ({', '.join(expected)}): this is another robot",
        )
        return
    renamed = tuple(names.get(n, n) for n in found)
    if renamed != expected:
        pairs = [f"{old} -> {new}" for old, new in zip(found, expected, strict=True) if names.get(old, old) != new]
        yield Finding(
            rule="contract-joints",
            where=what,
            found=_some(renamed),
            expected=f"{', '.join(expected)}; if they are the same joints, map in rename_map: {', '.join(pairs)}",
        )


def _cameras(found: tuple[str, ...], contract: ContractSettings, names: dict[str, str]) -> Iterator[Finding]:
    renamed = {names.get(f"{CAMERA_PREFIX}{c}", names.get(c, c)).removeprefix(CAMERA_PREFIX): c for c in found}
    unused = [c for name, c in renamed.items() if name not in contract.cameras]
    if len(renamed) < len(found):
        yield Finding(
            rule="contract-cameras",
            where="rename_map",
            found=f"two cameras under one name after renaming {', '.join(found)}",
            expected="one camera for each name",
        )
    for camera in contract.cameras:
        if camera not in renamed:
            hint = " or ".join(f"{CAMERA_PREFIX}{c}" for c in unused) or "a camera (it has none to spare)"
            yield Finding(
                rule="contract-cameras",
                where=f"{CAMERA_PREFIX}{camera}",
                found=f"cameras {', '.join(found) or 'none'}",
                expected=f"camera {camera}; map {hint} -> {CAMERA_PREFIX}{camera} in rename_map",
            )


def check_same_rate(reports: Mapping[str, DatasetReport], contract: ContractSettings) -> None:
    """Nothing, if all data sets run at one rate: the contract's, or that of the first where it names none.

    Raises:
        DatasetError: names every data set of another rate.
    """
    rates = {place: report.fps for place, report in reports.items()}
    expected = contract.fps or next(iter(rates.values()))
    if others := [f"{place} at {found or 0:g} fps" for place, found in rates.items() if found != expected]:
        whose = "the contract" if contract.fps else next(iter(rates))
        raise DatasetError(
            f"{'; '.join(others)}; expected {expected or 0:g} fps as {whose} has: action chunks of another rate mean "
            "other durations; bring data of one rate"
        )


def _unknown_renames(report: DatasetReport, names: dict[str, str]) -> Iterator[Finding]:
    """A rename of a camera that is not there is a slip of the pen."""
    known = {*report.cameras, *(f"{CAMERA_PREFIX}{c}" for c in report.cameras)}
    typos = [old for old, new in names.items() if new.startswith(CAMERA_PREFIX) and old not in known]
    if typos:
        yield Finding(
            rule="contract-rename",
            where="rename_map",
            found=f"{_some(tuple(typos))}, which the data set does not have",
            expected=f"one of its cameras ({_some(report.cameras)})",
        )


def _fps(found: float | None, contract: ContractSettings) -> Iterator[Finding]:
    if contract.fps is not None and found != contract.fps:
        yield Finding(
            rule="contract-fps",
            where="fps",
            found="unknown" if found is None else f"{found:g}",
            expected=f"{contract.fps:g}: action chunks of another rate mean other durations",
        )


def _units(report: DatasetReport, contract: ContractSettings) -> Iterator[Finding]:
    if report.units is not None and report.units != contract.units:
        yield Finding(
            rule="contract-units",
            where="state, action",
            found=report.units,
            expected=f"{contract.units}: one normalisation serves all clients",
            repair="convert-units" if report.units in ("ticks", "radians") and contract.units == "degrees" else None,
        )


def _some(names: tuple[str, ...], most: int = 8) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "") or "none"

"""Groups of clients that share joints and units: statistics are pooled within a group, never across groups."""

from collections.abc import Sequence

from zk0.data.calibrations import recognize_calibration
from zk0.data.statistics import pool_moments, with_smallest_std
from zk0.errors import DatasetError
from zk0.records import CalibrationName, DatasetReport, JointUnits, Member, StatisticsGroup
from zk0.settings.dataset_settings import ContractSettings

_Key = tuple[CalibrationName | None, JointUnits]


def pool_groups(
    contract: ContractSettings, members: Sequence[Member], evaluation_sets: Sequence[DatasetReport]
) -> tuple[StatisticsGroup, ...]:
    """Return the groups of the clients with their pooled statistics, the default group first.

    The default group is the contract's: its joints and units. If no client is in it, it is the group with the most
    training frames. Without `contract.other_groups` there is one group.

    Raises:
        DatasetError: there is no client, or clients of a group differ in their number of dimensions.
    """
    by_key: dict[_Key, list[Member]] = {}
    for member in members:
        by_key.setdefault(_key(contract, member.report), []).append(member)
    known = recognize_calibration(contract.joints)
    default: _Key = (known.name if known and contract.other_groups else None, contract.units)
    if not members:
        raise DatasetError("no client to pool statistics of, expected at least one")
    order = sorted(by_key, key=lambda key: (key != default, -sum(m.train_frames for m in by_key[key])))
    sets = [(_key(contract, report), report.dataset) for report in evaluation_sets]
    names = {key: tuple(dataset for other, dataset in sets if other == key) for key in order}
    return tuple(_pool_group(key, by_key[key], names[key]) for key in order)


def find_group(groups: Sequence[StatisticsGroup], report: DatasetReport) -> StatisticsGroup:
    """Return the group of a dataset: that of its calibration and units.

    Raises:
        DatasetError: no client is in this group.
    """
    found = next((g for g in groups if (g.calibration, g.units) == (report.calibration, report.units)), None)
    if found is None:
        raise DatasetError(
            f"{report.dataset}: joints {', '.join(report.state_names[:2])}, ... in {report.units}, and no client whose "
            f"statistics it could be normalized with; expected those of a group: {', '.join(g.name for g in groups)}"
        )
    return found


def check_groups(groups: Sequence[StatisticsGroup], reports: Sequence[DatasetReport]) -> None:
    """Check that every dataset belongs to a group.

    Raises:
        DatasetError: names every dataset that does not.
    """
    faults = []
    for report in reports:
        try:
            find_group(groups, report)
        except DatasetError as e:
            faults.append(str(e))
    if faults:
        raise DatasetError("; ".join(faults))


def _key(contract: ContractSettings, report: DatasetReport) -> _Key:
    if not contract.other_groups:
        return None, contract.units
    if report.units is None or report.units == "ticks":
        raise DatasetError(f"{report.dataset}: units {report.units}; expected degrees, radians or normalized")
    return report.calibration, report.units


def _pool_group(key: _Key, members: Sequence[Member], sets: tuple[str, ...]) -> StatisticsGroup:
    statistics = with_smallest_std(pool_moments([member.statistics for member in members]), key[1])
    names = tuple(member.client for member in members)
    return StatisticsGroup(calibration=key[0], units=key[1], clients=names, evaluation_sets=sets, statistics=statistics)

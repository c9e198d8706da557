"""Admission of a dataset to a federation: the quick check and the contract, without an error."""

from pathlib import Path

from zk0.data.check import check_dataset
from zk0.data.check.contract_rules import with_contract
from zk0.errors import DatasetError
from zk0.records import DatasetReport, JointUnits
from zk0.settings.plans import SessionTerms


def admit_dataset(
    uri: str,
    root: Path,
    terms: SessionTerms,
    rename_map: dict[str, str],
    units: JointUnits | None = None,
    expected_episodes: int | None = None,
) -> DatasetReport:
    """Check a dataset and return its report if it may take part.

    Args:
        uri: name of the dataset in the report.
        root: its folder.
        terms: of the session; its contract applies.
        rename_map: feature key in the dataset -> key in the contract.
        units: those that the session states for the dataset; None: it states none.
        expected_episodes: number of episodes that it must have; None: any.

    Raises:
        DatasetError: lists every error of the check.
    """
    report = check_dataset(root, dataset=uri, quick=True, rename_map=rename_map)
    report = with_contract(report, terms.contract, rename_map, units)
    if report.errors:
        raise DatasetError(f"{uri} may not take part: " + "; ".join(map(str, report.errors)) + _way_out(report))
    if expected_episodes not in (None, report.episodes):
        raise DatasetError(f"{uri} may not take part: {wrong_episode_count(report.episodes, expected_episodes)}")
    return report


def wrong_episode_count(found: int | None, expected: int | None) -> str:
    """Return the message about a dataset that has another number of episodes than the session expects.

    >>> wrong_episode_count(49, 50)
    '49 episodes, expected 50 (expected_episodes); bring the missing ones, or change the setting'
    """
    return f"{found} episodes, expected {expected} (expected_episodes); bring the missing ones, or change the setting"


def _way_out(report: DatasetReport) -> str:
    """Return how to repair a dataset, if all its errors can be repaired."""
    if not all(f.repair for f in report.errors):
        return ""
    repairs = ", ".join(dict.fromkeys(f.repair for f in report.errors if f.repair))
    return f'; `zk0 data repair {report.dataset} FOLDER` ({repairs}) writes a copy, as data.repair = "repair" does'

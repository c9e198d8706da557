"""One candidate data set: fetched, looked at, checked, repaired if asked for, and let in or refused."""

from prefect import flow

from tasks import intake
from zk0.errors import DatasetError
from zk0.records import DatasetReport


@flow(name="zk0-intake", flow_run_name="{uri}", persist_result=False)
def dataset_intake(
    uri: str,
    repair_to: str | None = None,
    quick: bool = False,
    pictures: bool = True,
    rename_map: dict[str, str] | None = None,
    cache: str = "~/.cache/zk0",
) -> DatasetReport:
    """The check of a data set that may take part in a federation.

    Args:
        uri: hf:user/name, user/name or local:/path.
        repair_to: a folder for a repaired copy, made if there is something to repair; unset: nothing is repaired.
        quick: decode no video.
        pictures: show thumbnails and joint plots in this Prefect server's UI.
        rename_map: feature key in the data set -> key in the contract.
        cache: where downloads are kept.

    Raises:
        DatasetError: findings keep it out; they are in the artifact `dataset-findings`.
    """
    renames = rename_map or {}
    root = intake.fetch_data(uri, cache)
    report = intake.check_data(root, uri, quick, renames)
    intake.show_findings(report)
    if pictures:
        intake.show_preview(root, uri, report.units or "stored units", renames)
    if repair_to is not None and any(f.repair for f in report.findings):
        report = intake.repair_data(root, repair_to, uri, renames)
        intake.show_findings(report)
    if report.errors:
        raise DatasetError(f"{uri} may not take part: " + "; ".join(map(str, report.errors)))
    return report

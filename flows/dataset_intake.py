"""The flow of the dataset intake: fetch, check, repair and preview one candidate dataset, then accept or reject it."""

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
    """Check a dataset that a client wants to join a federation with.

    Args:
        uri: hf:user/name, hf:user/name@REVISION or local:/path.
        repair_to: a folder for a repaired copy, written if a finding can be repaired; unset: nothing is repaired.
        quick: decode no video.
        pictures: show thumbnails and joint plots in this Prefect server's UI.
        rename_map: feature key in the dataset -> key in the contract.
        cache: the folder of downloads.

    Returns the report of the check, of the repaired copy where there is one.

    Raises:
        DatasetError: the dataset has errors; they are in the artifact `dataset-findings`.
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

import pytest

from zk0.data.check import check_same_rate
from zk0.errors import DatasetError
from zk0.records import DatasetReport
from zk0.settings.dataset_settings import ContractSettings


def report(fps: float | None) -> DatasetReport:
    return DatasetReport(dataset="d", root="", fps=fps)


def test_the_first_client_sets_the_rate() -> None:
    check_same_rate({"a": report(30), "b": report(30)}, ContractSettings())
    with pytest.raises(DatasetError, match=r"b at 20 fps; expected 30 fps as a has"):
        check_same_rate({"a": report(30), "b": report(20)}, ContractSettings())


def test_the_contract_sets_the_rate() -> None:
    with pytest.raises(DatasetError, match=r"a at 30 fps; evaluation at 0 fps; expected 20 fps as the contract has"):
        check_same_rate({"a": report(30), "b": report(20), "evaluation": report(None)}, ContractSettings(fps=20))

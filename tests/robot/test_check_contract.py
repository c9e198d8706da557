"""Whether a data set fits the federation, and what it is told to map."""

import numpy as np
import pytest

from zk0.records import DatasetReport
from zk0.robot.check import check_contract, check_dataset
from zk0.session import SO101_JOINTS, ContractSettings

CONTRACT = ContractSettings()
OLD_NAMES = tuple("main_" + j.removesuffix(".pos") for j in SO101_JOINTS)


@pytest.fixture
def report() -> DatasetReport:
    return DatasetReport(
        dataset="x", root="/x", fps=30.0, cameras=("overhead", "wrist"), state_names=SO101_JOINTS,
        action_names=SO101_JOINTS, units="degrees",
    )  # fmt: skip


def rules(report: DatasetReport, contract: ContractSettings = CONTRACT, rename=None) -> list[str]:
    return [f.rule for f in check_contract(report, contract, rename)]


def test_what_fits_has_no_finding(report, healthy) -> None:
    assert rules(report) == []
    assert check_contract(check_dataset(healthy, dataset="x"), CONTRACT) == ()


def test_another_robot_is_refused_by_its_dimensions(report) -> None:
    humanoid = report.model_copy(update={"state_names": tuple(f"k{i}" for i in range(26))})
    (finding,) = check_contract(humanoid, CONTRACT)
    assert finding.rule == "contract-dimensions"
    assert finding.found.startswith("26 dimensions (k0, k1")
    assert finding.expected.startswith("6 (shoulder_pan.pos")
    assert finding.severity == "error"


def test_other_names_of_joints_are_told_what_to_map(report) -> None:
    old = report.model_copy(update={"action_names": OLD_NAMES})
    (finding,) = check_contract(old, CONTRACT)
    assert "main_shoulder_pan -> shoulder_pan.pos" in finding.expected
    assert "main_gripper -> gripper.pos" in finding.expected
    assert rules(old, rename=dict(zip(OLD_NAMES, SO101_JOINTS, strict=True))) == []


def test_joints_in_another_order_are_refused(report) -> None:
    assert rules(report.model_copy(update={"state_names": SO101_JOINTS[::-1]})) == ["contract-joints"]


def test_cameras_are_told_what_to_map(report) -> None:
    other = report.model_copy(update={"cameras": ("top", "wrist")})
    (finding,) = check_contract(other, CONTRACT)
    assert finding.rule == "contract-cameras"
    assert "map observation.images.top -> observation.images.overhead in rename_map" in finding.expected
    assert rules(other, rename={"observation.images.top": "observation.images.overhead"}) == []


def test_a_missing_camera_is_not_dropped_in_silence(report) -> None:
    (finding,) = check_contract(report.model_copy(update={"cameras": ("wrist",)}), CONTRACT)
    assert (finding.rule, finding.where) == ("contract-cameras", "observation.images.overhead")
    assert "none to spare" in finding.expected


def test_a_bare_camera_name_can_be_mapped(report) -> None:
    bare = report.model_copy(update={"cameras": ("cam_high", "wrist")})
    assert rules(bare, rename={"cam_high": "observation.images.overhead"}) == []


def test_two_cameras_under_one_name_are_refused(report) -> None:
    three = report.model_copy(update={"cameras": ("overhead", "top", "wrist")})
    assert rules(three) == []
    assert "contract-cameras" in rules(three, rename={"observation.images.top": "observation.images.wrist"})


def test_a_rename_of_nothing_is_told(report) -> None:
    (finding,) = check_contract(report, CONTRACT, {"observation.images.typo": "observation.images.wrist"})
    assert finding.rule == "contract-rename"
    assert "observation.images.typo" in finding.found


def test_another_rate_is_refused_if_the_contract_states_one(report) -> None:
    assert rules(report, ContractSettings(fps=20)) == ["contract-fps"]
    assert rules(report, ContractSettings(fps=30)) == []


@pytest.mark.parametrize("units", ["radians", "ticks", "normalized"])
def test_other_units_are_refused_by_name(report, units) -> None:
    (finding,) = check_contract(report.model_copy(update={"units": units}), CONTRACT)
    assert (finding.rule, finding.found) == ("contract-units", units)
    assert (finding.repair is None) == (units == "normalized")


def test_units_that_cannot_be_told_are_let_in(report) -> None:
    assert rules(report.model_copy(update={"units": None})) == []


def test_what_could_not_be_read_does_not_fit(tmp_path) -> None:
    found = rules(check_dataset(tmp_path, dataset="x"), ContractSettings(fps=30))
    assert {"contract-dimensions", "contract-cameras", "contract-fps"} <= set(found)


def test_normalized_values_are_told_from_degrees(breaker, defects) -> None:
    def clip(rows: list) -> list:
        return np.clip(np.array(rows) * 2, -100, 100).tolist()

    for key in ("observation.state", "action"):
        breaker.column("data/chunk-000/file-000.parquet", key, clip)
    assert check_dataset(breaker.root, dataset="x").units == "normalized"

"""Whether a dataset fits the contract, and which renames the findings suggest."""

import numpy as np
import pytest

from zk0.data.check import check_contract, check_dataset
from zk0.data.check.contract_rules import with_contract
from zk0.records import DatasetReport
from zk0.settings.dataset_settings import SO101_JOINTS, ContractSettings

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


def test_a_dataset_that_fits_has_no_finding(report, healthy) -> None:
    assert rules(report) == []
    assert check_contract(check_dataset(healthy, dataset="x"), CONTRACT, units="degrees") == ()


@pytest.mark.parametrize(
    ("change", "stated", "found"),
    [
        ({}, None, ["contract-units-unknown"]),
        ({}, "degrees", []),
        ({"units": "degrees"}, None, []),
        ({"dataset": "sim:lift-red"}, None, []),
        ({"state_names": OLD_NAMES, "action_names": OLD_NAMES}, None, ["contract-joints", "contract-joints"]),
    ],
)
def test_units_that_nobody_knows_are_asked_for(report, change, stated, found) -> None:
    unknown = report.model_copy(update={"units": None} | change)
    findings = check_contract(unknown, CONTRACT, units=stated)
    assert [f.rule for f in findings] == found
    if found == ["contract-units-unknown"]:
        assert findings[0].severity == "warning"
        assert findings[0].expected.endswith('state it beside the dataset: units = "degrees"')


def test_another_robot_is_refused_by_its_dimensions(report) -> None:
    humanoid = report.model_copy(update={"state_names": tuple(f"k{i}" for i in range(26))})
    (finding,) = check_contract(humanoid, CONTRACT)
    assert finding.rule == "contract-dimensions"
    assert finding.found.startswith("26 dimensions (k0, k1")
    assert finding.expected.startswith("6 (shoulder_pan.pos")
    assert finding.severity == "error"


def test_the_finding_names_the_joints_to_map(report) -> None:
    old = report.model_copy(update={"action_names": OLD_NAMES})
    (finding,) = check_contract(old, CONTRACT)
    assert "main_shoulder_pan -> shoulder_pan.pos" in finding.expected
    assert "main_gripper -> gripper.pos" in finding.expected
    assert rules(old, rename=dict(zip(OLD_NAMES, SO101_JOINTS, strict=True))) == []


def test_joints_in_another_order_are_refused(report) -> None:
    assert rules(report.model_copy(update={"state_names": SO101_JOINTS[::-1]})) == ["contract-joints"]


def test_the_finding_names_the_cameras_to_map(report) -> None:
    other = report.model_copy(update={"cameras": ("top", "wrist")})
    (finding,) = check_contract(other, CONTRACT)
    assert finding.rule == "contract-cameras"
    assert "map observation.images.top -> observation.images.overhead in rename_map" in finding.expected
    assert rules(other, rename={"observation.images.top": "observation.images.overhead"}) == []


def test_a_missing_camera_is_found(report) -> None:
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


def test_a_rename_of_a_missing_camera_is_found(report) -> None:
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


@pytest.mark.parametrize(
    ("units", "stated", "hinted"),
    [("normalized", None, True), ("radians", None, True), ("ticks", None, False), ("normalized", "normalized", False)],
)
def test_a_unit_that_only_the_values_suggest_can_be_contradicted(report, units, stated, hinted) -> None:
    (finding,) = check_contract(report.model_copy(update={"units": units}), CONTRACT, units=stated)
    assert ('if they are degrees, state it beside the dataset: units = "degrees"' in finding.expected) is hinted
    if hinted:
        assert check_contract(report.model_copy(update={"units": units}), CONTRACT, units="degrees") == ()


def test_unknown_units_are_accepted(report) -> None:
    findings = check_contract(report.model_copy(update={"units": None}), CONTRACT)
    assert [f for f in findings if f.severity == "error"] == []


def test_an_unreadable_dataset_does_not_fit(tmp_path) -> None:
    found = rules(check_dataset(tmp_path, dataset="x"), ContractSettings(fps=30))
    assert {"contract-dimensions", "contract-cameras", "contract-fps"} <= set(found)


def test_normalized_values_are_recognized(breaker, defects) -> None:
    def clip(rows: list) -> list:
        return np.clip(np.array(rows) * 2, -100, 100).tolist()

    for key in ("observation.state", "action"):
        breaker.column("data/chunk-000/file-000.parquet", key, clip)
    assert check_dataset(breaker.root, dataset="x").units == "normalized"


@pytest.mark.parametrize(
    "change",
    [lambda v: np.clip(v * 2, -99, 100).round(), lambda v: np.where(v == v.max(), 104, np.clip(v * 2, -95, 95))],
    ids=["whole degrees that reach 100", "degrees beyond 100"],
)
def test_degrees_about_100_are_not_taken_for_normalized_values(breaker, change) -> None:
    for key in ("observation.state", "action"):
        breaker.column("data/chunk-000/file-000.parquet", key, lambda rows: change(np.array(rows)).tolist())
    assert check_dataset(breaker.root, dataset="x").units != "normalized"


SEVERAL = ContractSettings(units="normalized", other_groups=True)
"""Admits datasets of other known calibrations and units."""


def test_known_joint_names_are_a_group_of_their_own_where_the_contract_allows_it(report) -> None:
    old = report.model_copy(update={"state_names": OLD_NAMES, "action_names": OLD_NAMES})
    assert rules(old, SEVERAL) == []
    grouped = with_contract(old.model_copy(update={"units": None}), SEVERAL, {}, None)
    assert (grouped.calibration, grouped.units) == ("main", "degrees")  # by the names; the values would fit both
    (finding, *_) = check_contract(old, ContractSettings(units="normalized"))
    assert finding.expected.endswith("or set contract.other_groups = true, which pools the statistics of such datasets "
                                     "separately")  # fmt: skip
    renamed = with_contract(old, SEVERAL, dict(zip(OLD_NAMES, SO101_JOINTS, strict=True)), None)
    assert renamed.calibration == "pos"


def test_unknown_or_mixed_joint_names_are_refused_also_beside_other_groups(report) -> None:
    names = tuple(f"j{i}" for i in range(6))
    assert rules(report.model_copy(update={"state_names": names, "action_names": names}), SEVERAL) == [
        "contract-joints", "contract-joints",
    ]  # fmt: skip
    assert rules(report.model_copy(update={"state_names": OLD_NAMES}), SEVERAL) == ["contract-joints"]


def test_units_that_nothing_tells_are_asked_for(report) -> None:
    ambiguous = report.model_copy(update={"units": None})
    (finding,) = check_contract(ambiguous, SEVERAL)
    assert finding.rule == "contract-units"
    assert 'units = "degrees" or "normalized"' in finding.expected
    assert check_contract(ambiguous, SEVERAL, {}, "normalized") == ()
    assert with_contract(ambiguous, SEVERAL, {}, "normalized").units == "normalized"


@pytest.mark.parametrize(
    ("stated", "found", "fits"),
    [("normalized", "degrees", False), ("radians", "normalized", False), ("degrees", "normalized", True)],
)
def test_stated_units_must_allow_the_values(report, stated, found, fits) -> None:
    findings = check_contract(report.model_copy(update={"units": found}), SEVERAL, {}, stated)
    assert [f.rule for f in findings] == ([] if fits else ["contract-stated-units"])

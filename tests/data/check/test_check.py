"""Each rule has a dataset with exactly that defect (defects.py)."""

import json
from collections.abc import Iterator

import numpy as np
import pytest

from zk0.data.check import check_dataset
from zk0.data.check.contract_rules import CONTRACT_RULES
from zk0.data.check.rule import Rule, RuleGroup, Violation
from zk0.data.check.rule_catalog import RULE_GROUPS
from zk0.data.check.statistics_rules import _moment_differences

RULES = {rule.id: rule for group in RULE_GROUPS for rule in group.rules}


def test_a_healthy_dataset_has_no_finding(healthy) -> None:
    report = check_dataset(healthy, dataset="healthy")
    assert report.findings == ()
    assert (report.episodes, report.frames, report.fps) == (4, 48, 10.0)
    assert report.cameras == ("overhead", "wrist")
    assert report.state_names[5] == "gripper.pos"
    assert report.tasks == ("Pick up the cube.",)
    assert report.robot_type == "so101_follower"


def test_every_rule_has_a_defect(defects) -> None:
    """The rules of the contract have tests of their own in test_check_contract.py."""
    broken = set().union(*(rules for rules, _ in defects.values()))
    assert broken == RULES.keys() - {rule.id for rule in CONTRACT_RULES.rules}
    assert len(broken) >= 60


def test_rule_ids_are_unique() -> None:
    assert len(RULES) == sum(len(group.rules) for group in RULE_GROUPS)


def test_a_rule_is_declared_once_with_a_meaning_and_known_repairs() -> None:
    group = RuleGroup[[], Violation]("Tests", __name__)

    @group.rule("no-cube", severity="warning", repairs=("recount",))
    def no_cube() -> Iterator[Violation]:
        """There is a cube
        on the table.

        More about it.
        """
        yield Violation("table", "no cube", "a cube")
        yield Violation("floor", "no cube", "a cube", severity="error", repairable=False)

    assert group.rules == [Rule("no-cube", "There is a cube on the table.", "warning", repairs=("recount",))]
    assert [(f.rule, f.severity, f.where, f.repair) for f in group.findings()] == [
        ("no-cube", "warning", "table", "recount"),
        ("no-cube", "error", "floor", None),
    ]
    for rule_id, meaning, repairs in (("no-cube", "x", ()), ("other", "", ()), ("other", "x", ("hammer",))):
        with pytest.raises(ValueError, match="expected a new id, a meaning, and repairs of add-columns"):
            group.declare(rule_id, meaning, repairs=repairs)


def test_a_defect_is_found_and_nothing_else(defect, breaker) -> None:
    rules, break_it = defect
    break_it(breaker)
    report = check_dataset(breaker.root, dataset="broken")
    assert {f.rule for f in report.findings} == rules, "\n".join(map(str, report.findings))
    json.loads(report.model_dump_json())
    for finding in report.findings:
        assert finding.where
        assert finding.found != finding.expected
        rule = RULES[finding.rule]
        assert finding.severity == rule.severity or (finding.severity, bool(rule.error_if)) == ("error", True)
        assert finding.repair in rule.repairs or finding.repair is None
        assert finding.repair or rule.repair_if or not rule.repairs


def _float32_moments(values: np.ndarray) -> dict[str, list[float]]:
    """Mean and std as LeRobot computes them: means of values and squares in float32, then their difference."""
    mean, square = values.mean(axis=0), (values**2).mean(axis=0)
    return {"mean": mean.tolist(), "std": np.sqrt(np.maximum(0, square - mean**2)).tolist()}


@pytest.mark.parametrize("noise", [0.0, 0.002, 0.05])
@pytest.mark.parametrize("frames", [10, 300, 5000])
def test_float32_statistics_of_a_joint_that_stands_still_are_right(frames: int, noise: float) -> None:
    rng = np.random.default_rng(frames)
    values = (rng.uniform(-180, 180, 6) + noise * rng.standard_normal((frames, 6))).astype(np.float32)
    exact = values.astype(np.float64)
    stated = _float32_moments(values) | {"min": exact.min(axis=0), "max": exact.max(axis=0)}
    assert list(_moment_differences(stated, exact, frames)) == []


def test_rounding_hides_no_wrong_statistics_of_a_joint_that_moves() -> None:
    values = 60 + 5 * np.sin(np.arange(3000) / 10)[:, None]
    right = {"mean": values.mean(axis=0), "std": values.std(axis=0), "min": values.min(axis=0), "max": [65.0]}
    assert list(_moment_differences(right, values, 300)) == []
    for name, wrong in (("std", 0.0), ("std", 3.4), ("mean", 60.2), ("min", 55.2), ("max", 64.9)):
        (found,) = _moment_differences(right | {name: [wrong]}, values, 300)
        assert found.startswith(f"{name} {wrong:g} in dimension 0, where it is ")


def test_the_quick_check_decodes_no_video(defects, breaker) -> None:
    defects["a_video_with_a_hole"][1](breaker)
    assert check_dataset(breaker.root, dataset="broken", quick=True).findings == ()
    assert {f.rule for f in check_dataset(breaker.root, dataset="broken").findings} == {"undecodable-video"}


def test_a_rename_map_names_state_and_cameras(defects, breaker) -> None:
    defects["state_under_another_name"][1](breaker)
    breaker.json("meta/stats.json", lambda s: s.update(state=s.pop("observation.state")))
    assert {f.rule for f in check_dataset(breaker.root, dataset="x").findings} == {"feature-keys"}
    report = check_dataset(breaker.root, dataset="x", rename_map={"state": "observation.state"})
    assert report.findings == ()
    assert report.state_names[0] == "shoulder_pan.pos"

"""The quality tag of a dataset and of its episodes."""

import pytest
from defects import CASES, change_episode

from zk0.data.check import check_dataset
from zk0.data.check.quality import describe_quality
from zk0.records import DatasetReport, Finding


def finding(rule: str, severity: str = "warning", episodes: tuple[int, ...] = ()) -> Finding:
    return Finding(rule=rule, severity=severity, where="a", found="b", expected="c", episodes=episodes)


@pytest.mark.parametrize(
    ("values", "quality", "text"),
    [
        ({}, "clean", "clean"),
        ({"findings": (finding("glitch", episodes=(2,)),)}, "warnings", "warnings: glitch in 1 episode"),
        (
            {"findings": (finding("dark-pictures", episodes=(2, 3)), finding("dark-pictures", episodes=(3,)))},
            "warnings",
            "warnings: dark-pictures in 2 episodes",
        ),
        (
            {"repairs": ("recount", "renumber"), "findings": (finding("delta-actions"),)},
            "repaired",
            "repaired (recount, renumber): delta-actions",
        ),
        ({"findings": (finding("info", "error"),)}, "errors", "errors: info"),
    ],
)
def test_the_tag_and_its_reasons(values, quality, text) -> None:
    report = DatasetReport(dataset="x", root="", **values)
    assert report.quality == quality
    assert describe_quality(report) == text


def test_each_episode_has_its_rules(breaker) -> None:
    CASES["a_joint_that_jumps_and_returns"][1](breaker)
    change_episode(breaker, 3, lambda v: v[[0] * 12])
    report = check_dataset(breaker.root, dataset="x", quick=True)
    assert report.episode_rules == {1: ("glitch",), 3: ("idle-episode",)}
    assert report.quality == "warnings"

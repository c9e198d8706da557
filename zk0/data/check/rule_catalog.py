"""All rules of the data check, grouped by file. docs/data-checks.md is generated from them."""

from typing import Any

from zk0.data.check.camera_rules import CAMERA_RULES
from zk0.data.check.contents import Contents
from zk0.data.check.contract_rules import CONTRACT_RULES
from zk0.data.check.count_rules import COUNT_RULES
from zk0.data.check.decoded_video_rules import DECODED_VIDEO_RULES
from zk0.data.check.file_rules import FILE_RULES
from zk0.data.check.format_rules import FORMAT_RULES
from zk0.data.check.lost_episode_rules import LOST_EPISODE_RULES
from zk0.data.check.motion_rules import MOTION_RULES
from zk0.data.check.reading_rules import READING_RULES
from zk0.data.check.rule import Rule, RuleGroup, Violation
from zk0.data.check.statistics_rules import STATISTICS_RULES
from zk0.data.check.task_rules import TASK_RULES
from zk0.data.check.value_rules import VALUE_RULES

CONTENT_RULES: tuple[RuleGroup[[Contents], Violation], ...] = (
    FORMAT_RULES,
    FILE_RULES,
    COUNT_RULES,
    VALUE_RULES,
    MOTION_RULES,
    STATISTICS_RULES,
    CAMERA_RULES,
    TASK_RULES,
)
"""Rules that need nothing but the content of the dataset, in the order in which they run."""

RULE_GROUPS: tuple[RuleGroup[..., Any], ...] = (
    READING_RULES,
    *CONTENT_RULES,
    LOST_EPISODE_RULES,
    DECODED_VIDEO_RULES,
    CONTRACT_RULES,
)
"""Every group of rules, in the order in which their findings are reported."""

CONTENT_WARNINGS: tuple[Rule, ...] = tuple(
    rule
    for group in (VALUE_RULES, MOTION_RULES, TASK_RULES, DECODED_VIDEO_RULES)
    for rule in group.rules
    if rule.severity == "warning" and rule.id != "joint-names"
) + tuple(rule for rule in STATISTICS_RULES.rules if rule.id == "episode-statistics")
"""Warnings about what was recorded, not about how it is stored; and those that name episodes."""

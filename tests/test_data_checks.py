"""docs/data-checks.md lists the rules of the data check as they are declared."""

import subprocess
import sys
from pathlib import Path

from zk0.data.check.rule_catalog import RULE_GROUPS
from zk0.records import DatasetReport, Finding

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "data-checks.md"


def test_the_page_is_not_stale() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "docs" / "data_checks.py"), "--check"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_the_page_names_every_field_of_a_report_and_of_a_finding() -> None:
    text = PAGE.read_text(encoding="utf-8")
    report = DatasetReport(dataset="x", root="/x")
    fields = {*report.model_dump(mode="json"), *Finding.model_fields}
    assert {name for name in fields if f"`{name}`" not in text} == set()


def test_the_page_names_every_rule_and_its_file() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for group in RULE_GROUPS:
        assert f"`{group.module.replace('.', '/')}.py`" in text
        assert (ROOT / f"{group.module.replace('.', '/')}.py").is_file()
        for rule in group.rules:
            assert f"| `{rule.id}` |" in text
    for line in (
        "| `timestamps` | error | timestamp = frame_index / fps within 0.1 ms; LeRobot finds the video frame by it. |",
        "| `dark-camera` | warning | Every camera shows",
        "| `regularize-timestamps` |",
    ):
        assert line in text

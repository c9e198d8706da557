"""docs/configuration.md is up to date, and every setting has a description."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "configuration.md"


def test_page_is_up_to_date() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "docs" / "configuration.py"), "--check"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_every_setting_has_a_description() -> None:
    missing = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.endswith("|  |")]
    assert missing == [], "a Field in zk0/settings without a description"


def test_defaults_are_written_as_in_toml() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for line in (
        "| `proximal_mu` | number, at least 0 | `0.01` |",
        "| `repo_id` | text, matches `^[A-Za-z0-9]",
        "| `approval` | `true` or `false` | `false` |",
        "| `seeds` | list of integers | `[9000]` |",
        "| `dataset` | text | *required* |",
        "## `[[evaluation.datasets]]`",
    ):
        assert line in text

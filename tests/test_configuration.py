"""docs/configuration.md is what the settings are, and every setting says what it is for."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "configuration.md"


def test_the_page_is_not_stale() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "docs" / "configuration.py"), "--check"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_every_setting_says_what_it_is_for() -> None:
    silent = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.endswith("|  |")]
    assert silent == [], "a Field in zk0/session.py without a description"


def test_defaults_are_told_as_toml_has_them() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for line in (
        "| `proximal_mu` | number, at least 0 | `0.01` |",
        "| `repo_id` | text, fits `^[A-Za-z0-9]",
        "| `approval` | `true` or `false` | `false` |",
        "| `seeds` | list of integers | `[9000]` |",
        "| `dataset` | text | *must be given* |",
        "## `[[evaluation.datasets]]`",
    ):
        assert line in text

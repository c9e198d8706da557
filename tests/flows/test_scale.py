"""A session of several hundred clients on one machine."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_memory_does_not_grow_with_the_number_of_rounds(tmp_path: Path) -> None:
    """200 clients: what a session keeps of one round (updates of 0.8 MB each, records) does not pile up."""
    figures = tmp_path / "overhead.json"
    options = ["--clients", "200", "--rounds", "8", "--steps", "1", "--json", str(figures)]
    command = [sys.executable, "-m", "flows.cli.main", "bench", "overhead", *options]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    (row,) = json.loads(figures.read_text(encoding="utf-8"))["rows"]
    memory = row["memory_by_round"]
    assert row["clients"] == 200
    assert memory["8"] / memory["3"] < 1.05, memory

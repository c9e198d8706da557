"""`zk0 bench`: what is there is run with its own options, what is not is told."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows.cli import app


def test_a_name_that_is_none_of_ours() -> None:
    ended = CliRunner().invoke(app, ["bench", "nothing"])
    assert ended.exit_code == 2
    assert (
        "no benchmark nothing; expected one of a source checkout: aggregate, check, evaluate, overhead, train"
        in ended.output
    )


def test_options_are_handed_on() -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "flows.cli", "bench", "train", "--geometry", "huge"], capture_output=True, text=True
    )
    assert ended.returncode == 2
    assert "--geometry: invalid choice: 'huge'" in ended.stderr


@pytest.mark.slow
def test_the_table_of_training(tmp_path: Path) -> None:
    figures = tmp_path / "train.json"
    ended = subprocess.run(
        [sys.executable, "-m", "flows.cli", "bench", "train", "--steps", "2", "--json", str(figures)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    ways = json.loads(figures.read_text())["ways"]
    assert list(ways) == ["lerobot", "off", "embeddings", "kv", "lora", "deterministic"]
    assert {row["parameters"] for row in ways.values()} == {532_000}
    assert ways["kv"]["frames"] == ways["embeddings"]["frames"] == 120
    assert ways["embeddings"]["bytes_per_frame"] == pytest.approx(2 * 9 * 64 * 4, rel=0.01)
    assert [line.split(" | ")[0] for line in ended.stdout.splitlines()[3:]] == [f"| {way}" for way in ways]

"""`zk0 bench`: a script of benchmarks/ runs with its own options; an unknown name is refused."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows.cli.main import zk0_app


def test_an_unknown_name_is_refused() -> None:
    ended = CliRunner().invoke(zk0_app, ["bench", "nothing"])
    assert ended.exit_code == 2
    names = "aggregate, check, compress, evaluate, overhead, train, wire"
    assert f"no benchmark nothing; expected one of a source checkout: {names}" in ended.output


def test_options_are_passed_on() -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "flows.cli.main", "bench", "train", "--geometry", "huge"], capture_output=True, text=True
    )
    assert ended.returncode == 2
    assert "--geometry: invalid choice: 'huge'" in ended.stderr


@pytest.mark.slow
def test_the_table_of_training(tmp_path: Path) -> None:
    figures = tmp_path / "train.json"
    ended = subprocess.run(
        [sys.executable, "-m", "flows.cli.main", "bench", "train", "--steps", "2", "--json", str(figures)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    variants = json.loads(figures.read_text())["variants"]
    assert list(variants) == ["lerobot", "off", "embeddings", "kv", "lora", "deterministic"]
    assert {row["parameters"] for row in variants.values()} == {532_000}
    assert variants["kv"]["frames"] == variants["embeddings"]["frames"] == 120
    assert variants["embeddings"]["bytes_per_frame"] == pytest.approx(2 * 9 * 64 * 4, rel=0.01)
    assert [line.split(" | ")[0] for line in ended.stdout.splitlines()[3:]] == [f"| {name}" for name in variants]

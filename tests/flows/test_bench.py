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
    names = (
        "aggregate, asynchronous, buffered, check, compress, data_checkers, digests, evaluate, gateway, inference, "
        "norm_proof, overhead, secure, start, train, wire"
    )
    assert f"no benchmark nothing; expected one of a source checkout: {names}" in ended.output


def test_options_are_passed_on() -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "flows.cli.main", "bench", "train", "--geometry", "huge"], capture_output=True, text=True
    )
    assert ended.returncode == 2
    assert "--geometry: invalid choice: 'huge'" in ended.stderr


def test_act_has_no_variant_with_features() -> None:
    command = [sys.executable, "benchmarks/train.py", "--policy", "act", "--variants", "lerobot,kv"]
    ended = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert ended.returncode == 2
    assert "--variants: lerobot,kv; expected lerobot and some of off" in ended.stderr


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_act_beside_lerobots_own_step(tmp_path: Path) -> None:
    figures = tmp_path / "act.json"
    command = [sys.executable, "benchmarks/train.py", "--policy", "act", "--steps", "2", "--json", str(figures)]
    subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, check=True)
    found = json.loads(figures.read_text())
    assert found["settings"]["policy"] == "act"
    assert {name: row["parameters"] for name, row in found["variants"].items()} == dict.fromkeys(
        ("lerobot", "off"), 11_215_414
    )
    assert found["ratios"].keys() == {"train: off / lerobot"}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_table_of_training(tmp_path: Path) -> None:
    figures, tables = tmp_path / "train.json", tmp_path / "train.md"
    options = ["--steps", "2", "--profile", "--json", str(figures), "--markdown", str(tables)]
    ended = subprocess.run(
        [sys.executable, "-m", "flows.cli.main", "bench", "train", *options],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    variants = json.loads(figures.read_text())["variants"]
    assert list(variants) == ["lerobot", "off", "embeddings", "kv", "lora", "deterministic"]
    assert {row["parameters"] for row in variants.values()} == {532_000}
    assert variants["kv"]["frames"] == variants["embeddings"]["frames"] == 120
    assert variants["embeddings"]["bytes_per_frame"] == pytest.approx(2 * 9 * 64 * 4, rel=0.01)
    steps, parts = (table.splitlines() for table in ended.stdout.strip().split("\n\n"))
    assert tables.read_text() == ended.stdout
    assert [line.split(" | ")[0] for line in steps[3:]] == [f"| {name}" for name in variants]
    assert [line.split(" | ")[0] for line in parts[2:]] == [f"| {name}" for name in variants]
    kinds = {"copies", "optimizer", "matrix products", "other", "idle"}
    assert all(row["parts_ms"].keys() == kinds and row["parts_ms"]["optimizer"] > 0 for row in variants.values())

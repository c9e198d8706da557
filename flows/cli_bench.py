"""`zk0 bench`: measurements side by side with what they are compared to."""

import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from flows.failure import one_clear_line
from zk0.errors import SettingsError

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def bench(
    context: typer.Context,
    name: Annotated[
        str, typer.Argument(help="train, evaluate, aggregate, overhead or check; its own options follow, or --help.")
    ],
) -> None:
    """Measure zk0 beside what it is compared to: `zk0 bench train --geometry full --json train.json`."""
    with one_clear_line():
        script = BENCHMARKS / f"{name}.py"
        if not script.is_file():
            there = ", ".join(sorted(f.stem for f in BENCHMARKS.glob("*.py"))) or f"none in {BENCHMARKS}"
            raise SettingsError(f"zk0 bench: no benchmark {name}; expected one of a source checkout: {there}")
    raise typer.Exit(subprocess.run([sys.executable, str(script), *context.args], check=False).returncode)

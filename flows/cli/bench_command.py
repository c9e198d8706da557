"""`zk0 bench`: run a script of benchmarks/, which measures zk0 beside what it is compared with."""

import subprocess
import sys
from pathlib import Path
from typing import Annotated

import typer

from flows.cli.errors_to_exit_codes import errors_to_exit_codes
from zk0.errors import SettingsError

BENCHMARK_FOLDER = Path(__file__).parents[2] / "benchmarks"


def bench(
    context: typer.Context,
    name: Annotated[
        str,
        typer.Argument(
            help="name of a script of benchmarks/, such as train, overhead or wire; then its options or --help."
        ),
    ],
) -> None:
    """Measure zk0 beside what it is compared with, such as plain LeRobot.

    Example: `zk0 bench train --geometry full --json train.json`.
    """
    with errors_to_exit_codes():
        script = BENCHMARK_FOLDER / f"{name}.py"
        if not script.is_file():
            found = ", ".join(sorted(f.stem for f in BENCHMARK_FOLDER.glob("*.py"))) or f"none in {BENCHMARK_FOLDER}"
            raise SettingsError(f"zk0 bench: no benchmark {name}; expected one of a source checkout: {found}")
    raise typer.Exit(subprocess.run([sys.executable, str(script), *context.args], check=False).returncode)

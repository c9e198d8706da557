"""Checkers of LeRobot datasets on the same planted defects and on the same recordings without a known fault.

    python benchmarks/data_checkers.py --tools TOOLS --healthy FOLDER --json checkers.json

TOOLS has a folder for each other checker, with the packages that it needs beyond zk0's environment (`uv pip install
--no-deps --target TOOLS/lerobot-doctor lerobot-doctor`). FOLDER has the datasets of docs/healthy_recordings.json.

Every defect of tests/support/defects.py is planted in a copy of one small dataset. A checker finds it if it warns of
something that it does not say of the dataset without the defect, or refuses the dataset with a message; a traceback is
a crash. Which warning fits is not judged. On the recordings, each kind of warning is counted once for each dataset.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]


class Verdict(NamedTuple):
    """What a checker says about a dataset."""

    warnings: list[str]
    outcome: str
    """checked, refused or crashed."""


class Checker(NamedTuple):
    """A checker's command line, and how its JSON is read."""

    entry: str
    """Module and function of the command."""
    arguments: Callable[[str, str], list[str]]
    """Of a dataset and of a file for the JSON."""
    warnings: Callable[[Any], Iterator[str]]
    in_file: bool
    """The JSON is written to the file; otherwise it is printed."""


def zk0_warnings(report: Any) -> Iterator[str]:
    """Rule and episodes of each finding."""
    for finding in report["findings"]:
        yield f"{finding['rule']} {finding['episodes']}"


def doctor_warnings(report: Any) -> Iterator[str]:
    """Each message that is not a pass."""
    for check in report["checks"]:
        for message in check["messages"]:
            if message["severity"] != "PASS":
                yield f"{check['name']} {message['message']}"


def vet_warnings(report: Any) -> Iterator[str]:
    """Rule and episodes of each warning or failure."""
    for result in report["results"]:
        if result["severity"] in ("WARN", "FAIL"):
            yield f"{result['check_id']} {result['episodes']}"


def lint_warnings(report: Any) -> Iterator[str]:
    """Rule and episode of each warning or error."""
    for finding in report["findings"]:
        if finding["severity"] != "info":
            yield f"{finding['check']} {finding['episode']}"


def grade_warnings(report: Any) -> Iterator[str]:
    """Check and episode where the severity is a warning or a failure."""
    for check in report["dataset_level_checks"]:
        if check["severity"] in ("warn", "fail"):
            yield str(check["check_id"])
    for episode in report["episodes"]:
        for check in episode["checks"]:
            if check["severity"] in ("warn", "fail"):
                yield f"{check['check_id']} {episode['episode_id']}"


def kalanos_warnings(report: Any) -> Iterator[str]:
    """Metric, episode and stream of each finding that is not mere information."""
    for finding in report["findings"]:
        if finding["severity"] != "info":
            yield f"{finding['metric_id']} {str(finding['episode_id'])[-6:]} {finding['stream']}"


CHECKERS = {
    "zk0": Checker(
        "flows.cli.main:zk0_app", lambda s, _: ["data", "check", f"local:{s}", "--json"], zk0_warnings, False
    ),
    "lerobot-doctor": Checker("lerobot_doctor.cli:main", lambda s, _: ["check", s, "--json"], doctor_warnings, False),
    "robovet": Checker("robovet.cli:app", lambda s, f: ["doctor", s, "--json", f], vet_warnings, True),
    "lerobot-lint": Checker("lerobot_lint.cli:app", lambda s, f: ["check", s, "--json", f], lint_warnings, True),
    "deepen-grade": Checker("deepen_grade.cli:main", lambda s, _: ["grade", s, "--json"], grade_warnings, False),
    "kalanos": Checker("kalanos.cli:app", lambda s, _: ["grade", s, "--json"], kalanos_warnings, False),
}

RUNNER = """
import contextlib, importlib, io, json, sys, traceback
module, function = sys.argv[1].split(":")
command = getattr(importlib.import_module(module), function)
for line in sys.stdin:
    printed, told, outcome = io.StringIO(), io.StringIO(), "checked"
    sys.argv = [function, *json.loads(line)]
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(told):
        try:
            command()
        except SystemExit as ended:
            outcome = "checked" if ended.code in (None, 0, 1) else "refused"
        except BaseException:
            outcome = "crashed"
            traceback.print_exc()
    sys.__stdout__.write(json.dumps([printed.getvalue(), told.getvalue()[-500:], outcome]) + "\\n")
    sys.__stdout__.flush()
"""
"""Runs a command for each line of arguments, in one process: importing some checkers takes ten seconds."""


def check_all(name: str, tools: Path, sets: Sequence[Path]) -> dict[str, Verdict]:
    """The verdict of one checker on each dataset, by the name of its folder."""
    checker, path = CHECKERS[name], str(ROOT) if name == "zk0" else str(tools / name)
    with tempfile.TemporaryDirectory() as folder, (Path(folder) / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", RUNNER, checker.entry],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, cwd=folder,
            env={"PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "PATH": "/usr/bin:/bin", "HOME": folder, "NO_COLOR": "1"},
        )  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None
        verdicts = {}
        for dataset in sets:
            file = Path(folder) / "report.json"
            file.unlink(missing_ok=True)
            process.stdin.write(json.dumps(checker.arguments(str(dataset), str(file))) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
            if not line:
                sys.exit(f"{name} ended on {dataset}: {(Path(folder) / 'log').read_text()[-2000:]}")
            printed, _, outcome = json.loads(line)
            report = file.read_text() if checker.in_file and file.is_file() else printed
            verdicts[dataset.name] = verdict(checker, report, outcome)
            sys.stderr.write(f"\r{name}: {len(verdicts)} of {len(sets)} ")
        process.stdin.close()
        process.wait()
    return verdicts


def verdict(checker: Checker, report: str, outcome: str) -> Verdict:
    """The verdict of one run; without a report that can be read, the checker refused the dataset or crashed."""
    start = report.find("{")
    try:
        found = sorted(set(checker.warnings(json.JSONDecoder().raw_decode(report[start:])[0])))
    except (ValueError, KeyError, TypeError):
        return Verdict([], "crashed" if outcome == "crashed" else "refused")
    return Verdict(found, outcome)


def plant_defects(folder: Path) -> list[Path]:
    """Write the healthy dataset and a copy with each defect; the healthy one comes first."""
    sys.path.insert(0, str(ROOT / "tests/support"))
    from defects import CASES
    from healthy_dataset import Breaker, write_healthy_dataset

    write_healthy_dataset(folder / "healthy")
    for name, (_, break_it) in CASES.items():
        break_it(Breaker(Path(shutil.copytree(folder / "healthy", folder / name))))
    return [folder / "healthy", *(folder / name for name in CASES)]


def compare(verdicts: dict[str, Verdict]) -> dict[str, str]:
    """Each defect: found, refused, missed or crashed."""
    usual = set(verdicts["healthy"].warnings)
    return {
        name: one.outcome if one.outcome != "checked" else "found" if set(one.warnings) - usual else "missed"
        for name, one in verdicts.items()
        if name != "healthy"
    }


def kinds(one: Verdict) -> set[str]:
    """The kinds of warnings: without the episodes and numbers in them."""
    return {re.sub(r"[\[\d].*", "", warning).strip() for warning in one.warnings}


def defect_groups() -> dict[str, list[str]]:
    """The names of the defects under each heading of tests/support/defects.py."""
    text = (ROOT / "tests/support/defects.py").read_text(encoding="utf-8")
    parts = re.split(r"# ── (.+?) ─+", text)[1:]
    return {
        title: re.findall(r"^def (\w+)\(b\)", part, re.M) for title, part in zip(parts[::2], parts[1::2], strict=True)
    }


def tables(results: dict[str, Any]) -> str:
    """A table of counts, one of the defects found by group, and one of those that zk0 misses and another finds."""
    rows = ["| checker | found | refused | missed | crashed | recordings with a warning | kinds of warnings on them |"]
    rows.append("|---|---:|---:|---:|---:|---:|---:|")
    for name, one in results.items():
        counts = [sum(v == what for v in one["defects"].values()) for what in ("found", "refused", "missed", "crashed")]
        alarms = one["recordings"].values()
        cells = [*counts, f"{sum(bool(a) for a in alarms)} of {len(alarms)}", sum(map(len, alarms))]
        rows.append(f"| {name} | " + " | ".join(map(str, cells)) + " |")
    rows += ["", "| defects of | " + " | ".join(results) + " |", "|---|" + "---:|" * len(results)]
    for title, names in defect_groups().items():
        planted = [n for n in names if n in results["zk0"]["defects"]]
        found = [sum(one["defects"][n] in ("found", "refused") for n in planted) for one in results.values()]
        rows.append(f"| {title} ({len(planted)}) | " + " | ".join(map(str, found)) + " |")
    others = [name for name in results if name != "zk0"]
    known = results["zk0"]["defects"]
    rows += ["", "| missed by zk0 | found by |", "|---|---|"]
    for defect, outcome in known.items():
        by = [n for n in others if results[n]["defects"][defect] in ("found", "refused")]
        if outcome not in ("found", "refused") and by:
            rows.append(f"| {defect} | {', '.join(by)} |")
    return "\n".join(rows) + "\n"


def main() -> None:
    """Run all checkers and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tools", type=Path, required=True, help="folder with a folder of packages for each checker")
    parser.add_argument("--healthy", type=Path, required=True, help="folder with recordings without a known fault")
    parser.add_argument("--json", type=Path, help="write all verdicts to this file too")
    arguments = parser.parse_args()
    recorded = json.loads((ROOT / "docs/healthy_recordings.json").read_text(encoding="utf-8"))
    recordings = [arguments.healthy.resolve() / name for name in recorded]
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        planted = plant_defects(Path(folder))
        for name in CHECKERS:
            if name == "zk0" or (arguments.tools / name).is_dir():
                verdicts = check_all(name, arguments.tools.resolve(), [*planted, *recordings])
                found = {p.name: verdicts[p.name] for p in planted}
                alarms = {r.name: sorted(kinds(verdicts[r.name])) for r in recordings}
                results[name] = {"defects": compare(found), "recordings": alarms}
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    sys.stdout.write("\n" + tables(results))


if __name__ == "__main__":
    main()

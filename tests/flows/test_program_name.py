"""Commands that are printed can be pasted: by name where PATH leads to the program, else by its path."""

import subprocess
import sys
from pathlib import Path

import pytest

from flows.cli.program_name import program_name


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with an environment in `.venv`; PATH leads to none."""
    programs = tmp_path / "my clone" / ".venv" / "bin"
    programs.mkdir(parents=True)
    for name in ("zk0", "zk0bot"):
        (programs / name).write_text('#!/bin/sh\necho "$0 $*"\n')
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.setattr(sys, "executable", str(programs / "python"))
    monkeypatch.setattr(sys, "argv", [str(programs / "zk0")])
    monkeypatch.chdir(programs.parents[1])
    return programs


def test_the_path_is_relative_to_the_working_directory(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert program_name() == ".venv/bin/zk0"
    assert program_name("zk0bot") == ".venv/bin/zk0bot"
    monkeypatch.setattr(sys, "argv", [".venv/bin/zk0"])
    assert program_name() == ".venv/bin/zk0"
    monkeypatch.setattr(sys, "argv", ["/elsewhere/flows/cli/main.py"])
    assert program_name() == ".venv/bin/zk0"
    monkeypatch.chdir(clone)
    assert program_name() == "./zk0"


@pytest.mark.parametrize("from_here", [True, False])
def test_from_elsewhere_a_shell_starts_it_too(clone: Path, tmp_path: Path, from_here: bool) -> None:
    if from_here:
        (other := tmp_path / "other").mkdir()
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(other)
            command = program_name()
    else:
        command = program_name(from_here=False)
    done = subprocess.run(f"{command} run", shell=True, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == f"{clone / 'zk0'} run\n"


def test_its_name_if_path_leads_to_it(clone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{clone}:/usr/bin")
    assert program_name() == "zk0"
    other = tmp_path / "another" / "zk0"
    other.parent.mkdir()
    other.write_text("#!/bin/sh\n")
    other.chmod(0o755)
    monkeypatch.setenv("PATH", f"{other.parent}:{clone}")
    assert program_name() == ".venv/bin/zk0", "PATH leads to another one"
    assert program_name("lerobot-rollout") == "lerobot-rollout", "not in this environment"

"""The list of SHA-256 digests of a folder: as sha256sum writes it, and every change is found."""

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from zk0.errors import CheckpointError
from zk0.storage.sha256_sums import SUMS_FILE, check_sums, renew_sums, sha256_of_folder, sums_text


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "vlm").mkdir()
    for name in ("model.safetensors", "README.md", "vlm/a name with blanks.json", ".gitattributes"):
        (tmp_path / name).write_text(name)
    (tmp_path / SUMS_FILE).write_text(sums_text(sha256_of_folder(tmp_path)))
    return tmp_path


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="no sha256sum here")
def test_sha256sum_reads_the_list(folder: Path) -> None:
    done = subprocess.run(["sha256sum", "--check", "--strict", SUMS_FILE], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stdout.count(": OK") == 3


def test_an_unchanged_folder(folder: Path) -> None:
    assert sorted(check_sums(folder)) == ["README.md", "model.safetensors", "vlm/a name with blanks.json"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda f: os.truncate(f / "model.safetensors", 3),
            "1 files differ from the list: model.safetensors was changed",
        ),
        (lambda f: (f / "README.md").unlink(), "README.md is missing"),
        (lambda f: (f / "more.json").touch(), "more.json is not in the list"),
        (lambda f: (f / SUMS_FILE).unlink(), "cannot be read .* expected a policy that zk0 saved"),
        (lambda f: (f / SUMS_FILE).write_text("abc  README.md\n"), "line 1: expected 64 hex digits"),
    ],
)
def test_a_changed_folder(folder: Path, change: Callable[[Path], object], message: str) -> None:
    change(folder)
    with pytest.raises(CheckpointError, match=message):
        check_sums(folder)


def test_what_a_person_may_edit(folder: Path) -> None:
    (folder / "README.md").write_text("corrected")
    (folder / "more.json").touch()
    assert renew_sums(folder, ("README.md",)) == check_sums(folder)
    os.truncate(folder / "model.safetensors", 3)
    with pytest.raises(CheckpointError, match=r"model\.safetensors changed or missing"):
        renew_sums(folder, ("README.md",))

"""A folder that cannot be written is found before anything is made."""

from pathlib import Path

import pytest

from zk0.errors import SettingsError
from zk0.storage.writable import check_readable, check_writable


def test_nothing_is_left_behind(tmp_path: Path) -> None:
    check_writable(tmp_path / "a" / "b", "cache_dir")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_the_system(tmp_path: Path) -> None:
    """/proc cannot be written by any user, as a read-only disk."""
    with pytest.raises(SettingsError, match=r"cache_dir: /proc/nope cannot be made, because /proc cannot be written"):
        check_writable(Path("/proc/nope"), "cache_dir")
    (tmp_path / "file").touch()
    with pytest.raises(SettingsError, match=r"output_dir: .*file cannot be written \(Not a directory\)"):
        check_writable(tmp_path / "file", "output_dir")


def test_a_folder_that_can_be_read_or_is_not_there(tmp_path: Path) -> None:
    check_readable(tmp_path, "--home")
    check_readable(tmp_path / "a" / "b", "--home")
    assert list(tmp_path.iterdir()) == []

"""Atomic writes: old or new content, never a part; no temporary file is left; a full disk is named."""

import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from full_disk import files_limited_to

from zk0.errors import DiskFull, ReportError
from zk0.storage.atomic import (
    atomic_folder,
    atomic_path,
    atomic_write_bytes,
    atomic_write_text,
    remove_temporary_files,
)

OLD, NEW = b"old" * 1000, b"new" * 1000
KILLED = """
import os, signal, sys
from pathlib import Path
from zk0.storage.atomic import atomic_path, atomic_folder
path = Path(sys.argv[1])
with atomic_path(path) as file, atomic_folder(path.parent / "folder", existing="replace") as folder:
    file.write_bytes(b"new")
    folder.mkdir()
    (folder / "new").touch()
    os.kill(os.getpid(), signal.SIGKILL)
"""
CONCURRENT = """
import sys
from pathlib import Path
from zk0.storage.atomic import atomic_write_bytes
for _ in range(50):
    atomic_write_bytes(Path(sys.argv[1]), sys.argv[2].encode() * 100_000, durable=False)
"""


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "file.bin").write_bytes(OLD)
    return tmp_path / "file.bin"


@pytest.fixture
def small_files() -> None:
    """No file of this process may exceed 2,000 bytes meanwhile."""
    with files_limited_to(2000):
        yield


class TestPath:
    @pytest.mark.parametrize("durable", [True, False])
    def test_new_content_replaces_the_old_at_the_end(self, path: Path, durable: bool) -> None:
        with atomic_path(path, durable=durable) as temporary:
            temporary.write_bytes(NEW)
            assert path.read_bytes() == OLD
        assert path.read_bytes() == NEW
        assert names(path.parent) == ["file.bin"]

    def test_parents_are_made(self, tmp_path: Path) -> None:
        atomic_write_text(tmp_path / "a" / "b" / "text", "grüße")
        assert (tmp_path / "a" / "b" / "text").read_text(encoding="utf-8") == "grüße"

    def test_failure_leaves_the_old_content(self, path: Path) -> None:
        def write() -> None:
            with atomic_path(path) as temporary:
                temporary.write_bytes(NEW)
                raise ValueError("failed")

        with pytest.raises(ValueError, match="failed"):
            write()
        assert path.read_bytes() == OLD
        assert names(path.parent) == ["file.bin"]

    def test_block_without_a_file_leaves_the_old_content(self, path: Path) -> None:
        with atomic_path(path) as temporary:
            temporary.write_bytes(NEW)
            temporary.unlink()
        assert path.read_bytes() == OLD

    def test_hard_link_to_the_target_itself(self, path: Path) -> None:
        """Renaming one name of a file to another name of it does nothing, so the temporary name must be removed."""
        with atomic_path(path, durable=False) as temporary:
            temporary.hardlink_to(path)
        assert (path.read_bytes(), names(path.parent)) == (OLD, ["file.bin"])

    def test_mode_holds_from_the_beginning(self, tmp_path: Path) -> None:
        with atomic_path(tmp_path / "key", mode=0o600) as temporary:
            assert stat.S_IMODE(temporary.stat().st_mode) == 0o600
            temporary.write_bytes(b"secret")
        assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600
        assert (tmp_path / "key").read_bytes() == b"secret"

    def test_suffix_of_the_temporary_name(self, tmp_path: Path) -> None:
        with (
            atomic_path(tmp_path / "video.mp4") as plain,
            atomic_path(tmp_path / "video.mp4", keep_suffix=True) as kept,
        ):
            assert (plain.suffix, kept.suffix) == (".tmp", ".mp4")
            assert all(one.name.startswith(".video.mp4.") for one in (plain, kept))

    def test_full_disk_names_the_target(self, path: Path, small_files: None) -> None:
        with pytest.raises(
            DiskFull, match=r"file\.bin: cannot be written: the file exceeds the allowed size; free some"
        ):
            atomic_write_bytes(path, NEW, error=ReportError)
        assert path.read_bytes() == OLD
        assert names(path.parent) == ["file.bin"]

    def test_other_errors_become_the_chosen_one(self, path: Path) -> None:
        with pytest.raises(NotADirectoryError):
            atomic_write_bytes(path / "below" / "a" / "file", NEW)
        with pytest.raises(ReportError, match=r"cannot be written \(Not a directory\); choose another folder"):
            atomic_write_bytes(path / "below" / "a" / "file", NEW, error=ReportError)

    def test_concurrent_writers_leave_the_content_of_one(self, tmp_path: Path) -> None:
        path, letters = tmp_path / "file", "abc"
        writers = [subprocess.Popen([sys.executable, "-c", CONCURRENT, str(path), letter]) for letter in letters]
        found = set()
        while any(writer.poll() is None for writer in writers):
            if path.is_file():
                found.add(path.read_bytes())
        assert [writer.returncode for writer in writers] == [0, 0, 0]
        assert found | {path.read_bytes()} <= {letter.encode() * 100_000 for letter in letters}
        assert names(tmp_path) == ["file"]


class TestFolder:
    def test_folder_appears_at_the_end(self, tmp_path: Path) -> None:
        with atomic_folder(tmp_path / "a" / "folder") as temporary:
            (temporary / "inner").mkdir(parents=True)
            (temporary / "inner" / "file").write_bytes(NEW)
            assert not (tmp_path / "a" / "folder").exists()
        assert (tmp_path / "a" / "folder" / "inner" / "file").read_bytes() == NEW
        assert names(tmp_path / "a") == ["folder"]

    @pytest.mark.parametrize(("existing", "content"), [("replace", ["new"]), ("keep", ["old"])])
    def test_existing_folder(self, tmp_path: Path, existing: str, content: list[str]) -> None:
        (tmp_path / "folder").mkdir()
        (tmp_path / "folder" / "old").touch()
        with atomic_folder(tmp_path / "folder", existing=existing) as temporary:
            temporary.mkdir()
            (temporary / "new").touch()
        assert names(tmp_path / "folder") == content
        assert names(tmp_path) == ["folder"]

    def test_existing_folder_is_refused_by_default(self, tmp_path: Path) -> None:
        (tmp_path / "folder").mkdir()
        (tmp_path / "folder" / "old").touch()
        with pytest.raises(OSError, match="not empty"), atomic_folder(tmp_path / "folder") as temporary:
            temporary.mkdir()
        assert (names(tmp_path / "folder"), names(tmp_path)) == (["old"], ["folder"])

    def test_failure_leaves_nothing(self, tmp_path: Path) -> None:
        def write() -> None:
            with atomic_folder(tmp_path / "folder") as temporary:
                temporary.mkdir()
                raise ValueError("failed")

        with pytest.raises(ValueError, match="failed"):
            write()
        assert names(tmp_path) == []

    def test_full_disk_names_the_folder(self, tmp_path: Path, small_files: None) -> None:
        def write() -> None:
            with atomic_folder(tmp_path / "folder") as temporary:
                temporary.mkdir()
                (temporary / "file").write_bytes(NEW)

        with pytest.raises(DiskFull, match="folder: cannot be written"):
            write()
        assert names(tmp_path) == []

    def test_full_disk_in_the_text_of_a_library_error(self, tmp_path: Path) -> None:
        with (
            pytest.raises(DiskFull, match="folder: cannot be written: no space left on its disk; free some space"),
            atomic_folder(tmp_path / "folder", RuntimeError),
        ):
            raise RuntimeError("I/O error: No space left on device (os error 28)")


def test_killed_writer_leaves_the_old_content(path: Path) -> None:
    (path.parent / "folder").mkdir()
    (path.parent / "folder" / "old").touch()
    killed = subprocess.run([sys.executable, "-c", KILLED, str(path)])
    assert killed.returncode == -signal.SIGKILL
    assert path.read_bytes() == OLD
    assert names(path.parent / "folder") == ["old"]
    assert len(names(path.parent)) == 4
    remove_temporary_files(path.parent)
    assert names(path.parent) == ["file.bin", "folder"]

"""The session folder: created once, locked by one process, cleaned up after a failure."""

import subprocess
import sys
from pathlib import Path

import pytest

from zk0.errors import DatasetError, SettingsError
from zk0.settings.loading import parse_session
from zk0.settings.session import Session
from zk0.storage.session_folder import SessionFolder

LOCKING = """
import sys
from pathlib import Path
from zk0.errors import SettingsError
from zk0.storage.session_folder import SessionFolder
try:
    with SessionFolder(Path(sys.argv[1])).locked():
        print("locked", flush=True)
        if len(sys.argv) > 2:
            sys.stdin.readline()
except SettingsError as e:
    print(e)
"""


@pytest.fixture
def session() -> Session:
    clients = [{"name": n, "dataset": f"x/{n}", "rename_map": {"a.b": "c.d"}} for n in "ab"]
    return parse_session({"clients": clients, "evaluation": {"datasets": [{"dataset": "x/j"}]}}, "here")


@pytest.fixture
def here(session: Session, tmp_path: Path) -> SessionFolder:
    folder = SessionFolder(tmp_path / "outputs" / "2026-01-01_00-00-00_mini")
    folder.create(session)
    return folder


class TestCreate:
    def test_every_setting_is_written(self, here: SessionFolder, session: Session) -> None:
        assert here.read_session() == session
        text = here.session_toml.read_text()
        assert "proximal_mu = 0.01" in text
        assert [p.name for p in here.path.iterdir()] == ["session.toml"]

    def test_second_call_changes_nothing(self, here: SessionFolder, session: Session) -> None:
        before = here.session_toml.stat().st_mtime_ns
        here.create(session)
        assert here.session_toml.stat().st_mtime_ns == before

    def test_folder_of_another_session_is_refused(self, here: SessionFolder, session: Session) -> None:
        before = here.session_toml.read_text()
        with pytest.raises(SettingsError, match=r"holds a session with other settings.*--resume"):
            here.create(session.model_copy(update={"rounds": 3}))
        assert here.session_toml.read_text() == before

    def test_folder_that_cannot_be_written(self, session: Session, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(SettingsError, match=r"output_dir: .*cannot be written \(Not a directory\)"):
            SessionFolder(tmp_path / "file" / "x").create(session)

    def test_folder_without_a_session(self, tmp_path: Path) -> None:
        with pytest.raises(SettingsError, match=r"session.toml: cannot be read"):
            SessionFolder(tmp_path).read_session()

    def test_settings_of_another_version(self, here: SessionFolder) -> None:
        here.session_toml.write_text(f"setting_of_old = 1\n{here.session_toml.read_text()}")
        message = "setting_of_old: unknown setting; if another version of zk0 began this session, resume it with that"
        with pytest.raises(SettingsError, match=message):
            here.read_session()


class TestLocked:
    def test_second_process_is_refused_and_names_the_first(self, here: SessionFolder) -> None:
        run = [sys.executable, "-c", LOCKING, str(here.path)]
        first = subprocess.Popen([*run, "wait"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert first.stdin is not None
        assert first.stdout is not None
        assert first.stdout.readline() == "locked\n"
        refused = subprocess.run(run, capture_output=True, text=True, check=True).stdout
        assert f"process {first.pid} is working on this session" in refused
        with pytest.raises(SettingsError, match=f"process {first.pid} is working"), here.locked():
            pass
        with pytest.raises(SettingsError, match=f"process {first.pid} is working"):
            here.check_not_locked()
        assert here.session_toml.is_file()
        first.communicate("\n")
        here.check_not_locked()
        assert subprocess.run(run, capture_output=True, text=True, check=True).stdout == "locked\n"

    def test_killed_process_leaves_no_lock(self, here: SessionFolder) -> None:
        run = [sys.executable, "-c", LOCKING, str(here.path), "wait"]
        first = subprocess.Popen(run, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert first.stdout is not None
        assert first.stdout.readline() == "locked\n"
        first.kill()
        first.wait()
        with here.locked():
            pass

    def test_failure_before_the_first_record_removes_the_folder(self, here: SessionFolder) -> None:
        (here.path / "clients").mkdir()
        with pytest.raises(DatasetError, match="broken"), here.locked():
            raise DatasetError("broken")
        assert not here.path.exists()

    def test_failure_after_the_first_record_keeps_the_folder(self, here: SessionFolder) -> None:
        here.ledger.touch()
        with pytest.raises(DatasetError), here.locked():
            raise DatasetError("broken")
        assert here.session_toml.is_file()

    def test_unexpected_errors_keep_the_folder(self, here: SessionFolder) -> None:
        with pytest.raises(ZeroDivisionError), here.locked():
            _ = 1 / 0
        assert here.session_toml.is_file()
        with pytest.raises(KeyboardInterrupt), here.locked():
            raise KeyboardInterrupt
        assert here.session_toml.is_file()


def test_paths_are_relative_to_the_folder(here: SessionFolder) -> None:
    assert here.relative(here.weights(3)) == "round-003/weights.safetensors"
    assert here.relative(here.updates(12)) == "round-012/updates"
    assert here.relative(here.checkpoint(3)) == "models/checkpoint_round_3"
    assert here.relative(here.rollouts(3)) == "evaluate/round_3"
    with pytest.raises(ValueError, match="not in the subpath"):
        here.relative(Path("/elsewhere"))

"""The folder of a session: made once, worked on by one, left clean."""

import subprocess
import sys
from pathlib import Path

import pytest

from zk0.errors import DatasetError, SettingsError
from zk0.folder import SessionFolder
from zk0.session import Session, parse_session

OTHER = """
import sys
from pathlib import Path
from zk0.errors import SettingsError
from zk0.folder import SessionFolder
try:
    with SessionFolder(Path(sys.argv[1])).alone():
        print("alone", flush=True)
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
    def test_every_setting_is_written_down(self, here: SessionFolder, session: Session) -> None:
        assert here.session() == session
        text = here.session_toml.read_text()
        assert "proximal_mu = 0.01" in text
        assert [p.name for p in here.path.iterdir()] == ["session.toml"]

    def test_again_is_the_same(self, here: SessionFolder, session: Session) -> None:
        before = here.session_toml.stat().st_mtime_ns
        here.create(session)
        assert here.session_toml.stat().st_mtime_ns == before

    def test_another_session_has_another_folder(self, here: SessionFolder, session: Session) -> None:
        before = here.session_toml.read_text()
        with pytest.raises(SettingsError, match=r"belongs to a session with other settings.*--resume"):
            here.create(session.model_copy(update={"rounds": 3}))
        assert here.session_toml.read_text() == before

    def test_a_place_that_cannot_be_written(self, session: Session, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(SettingsError, match=r"output_dir: .*cannot be written \(Not a directory\)"):
            SessionFolder(tmp_path / "file" / "x").create(session)

    def test_a_folder_without_a_session(self, tmp_path: Path) -> None:
        with pytest.raises(SettingsError, match=r"session.toml: cannot be read"):
            SessionFolder(tmp_path).session()


class TestAlone:
    def test_a_second_process_is_refused_by_number(self, here: SessionFolder) -> None:
        run = [sys.executable, "-c", OTHER, str(here.path)]
        first = subprocess.Popen([*run, "wait"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert first.stdin is not None
        assert first.stdout is not None
        assert first.stdout.readline() == "alone\n"
        refused = subprocess.run(run, capture_output=True, text=True, check=True).stdout
        assert f"process {first.pid} is working on this session" in refused
        with pytest.raises(SettingsError, match=f"process {first.pid} is working"), here.alone():
            pass
        assert here.session_toml.is_file()
        first.communicate("\n")
        assert subprocess.run(run, capture_output=True, text=True, check=True).stdout == "alone\n"

    def test_a_killed_process_leaves_no_lock(self, here: SessionFolder) -> None:
        run = [sys.executable, "-c", OTHER, str(here.path), "wait"]
        first = subprocess.Popen(run, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert first.stdout is not None
        assert first.stdout.readline() == "alone\n"
        first.kill()
        first.wait()
        with here.alone():
            pass

    def test_a_session_that_fails_before_its_first_record_leaves_nothing(self, here: SessionFolder) -> None:
        (here.path / "clients").mkdir()
        with pytest.raises(DatasetError, match="broken"), here.alone():
            raise DatasetError("broken")
        assert not here.path.exists()

    def test_one_with_a_record_is_kept(self, here: SessionFolder) -> None:
        here.ledger.touch()
        with pytest.raises(DatasetError), here.alone():
            raise DatasetError("broken")
        assert here.session_toml.is_file()

    def test_a_fault_of_ours_is_kept_to_be_looked_at(self, here: SessionFolder) -> None:
        with pytest.raises(ZeroDivisionError), here.alone():
            _ = 1 / 0
        assert here.session_toml.is_file()
        with pytest.raises(KeyboardInterrupt), here.alone():
            raise KeyboardInterrupt
        assert here.session_toml.is_file()


def test_paths_are_named_from_the_folder(here: SessionFolder) -> None:
    assert here.relative(here.weights(3)) == "round-003/weights.safetensors"
    assert here.relative(here.updates(12)) == "round-012/updates"
    assert here.relative(here.checkpoint(3)) == "models/checkpoint_round_3"
    assert here.relative(here.rollouts(3)) == "evaluate/round_3"
    with pytest.raises(ValueError, match="not in the subpath"):
        here.relative(Path("/elsewhere"))

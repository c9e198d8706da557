"""The folder of a session: where each of its files lies, and the lock of the process that works on it."""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from zk0.errors import DiskFull, SettingsError, Zk0Error
from zk0.settings.loading import load_session, to_toml
from zk0.settings.session import Session
from zk0.storage.atomic import atomic_write_text, remove_temporary_files
from zk0.storage.disk_space import translate_disk_full


class SessionFolder:
    """`outputs/<YYYY-MM-DD_HH-MM-SS>-<run>_<name>/`. Paths inside records are relative to it: it can be moved."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def name(self) -> str:
        """Name of the folder; unique for every run of a session."""
        return self.path.name

    @property
    def session_toml(self) -> Path:
        """All settings of the session, with the defaults written out."""
        return self.path / "session.toml"

    @property
    def ledger(self) -> Path:
        """The ledger: one line for each finished round."""
        return self.path / "ledger.jsonl"

    @property
    def setup(self) -> Path:
        """The session setup: members, evaluation sets, pooled statistics, policy recipe."""
        return self.path / "session_setup.json"

    @property
    def report(self) -> Path:
        """The HTML report, which is written last."""
        return self.path / "report.html"

    @property
    def release(self) -> Path:
        """The decision whether the last checkpoint is published, with its reason."""
        return self.path / "release.json"

    @property
    def privacy_key(self) -> Path:
        """Secret seed of the differential privacy noise. Its reader can subtract the noise again."""
        return self.path / "privacy.key"

    def round_folder(self, number: int) -> Path:
        """Folder of the weights and updates of one round."""
        return self.path / f"round-{number:03d}"

    def weights(self, number: int) -> Path:
        """Global weights after a round, float32."""
        return self.round_folder(number) / "weights.safetensors"

    def server_control(self, number: int) -> Path:
        """The server's control variate after a round (SCAFFOLD)."""
        return self.round_folder(number) / "server_control.safetensors"

    def sent_weights(self, number: int) -> Path:
        """Global weights after a round in the format that clients download, where that is not plain float32."""
        return self.round_folder(number) / "sent.safetensors"

    def updates(self, number: int) -> Path:
        """Spool folder of the clients' updates of a round."""
        return self.round_folder(number) / "updates"

    def checkpoint(self, number: int) -> Path:
        """Complete LeRobot policy folder of a round."""
        return self.path / "models" / f"checkpoint_round_{number}"

    @property
    def rollouts_folder(self) -> Path:
        """Folder of the closed-loop attempts of all rounds."""
        return self.path / "evaluate"

    def rollouts(self, number: int) -> Path:
        """Folder of the videos and results of closed-loop attempts after a round."""
        return self.rollouts_folder / f"round_{number}"

    def relative(self, path: Path) -> str:
        """A path inside this folder, relative to it, as records name it."""
        return str(path.relative_to(self.path))

    def create(self, session: Session) -> None:
        """Make the folder and write session.toml; a second call with the same settings changes nothing.

        Raises:
            SettingsError: the folder cannot be written, or holds a session with other settings.
        """
        text = to_toml(session)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if not self.session_toml.is_file():
                atomic_write_text(self.session_toml, text)
            elif self.session_toml.read_text(encoding="utf-8") != text:
                raise SettingsError(f"{self.path}: holds a session with other settings; resume it with --resume")
        except OSError as e:
            raise _not_writable(self.path, e) from e

    def replace_session(self, session: Session) -> None:
        """Write session.toml again, after the session has moved to another place.

        Raises:
            SettingsError: the folder cannot be written.
        """
        try:
            if self.session_toml.read_text(encoding="utf-8") != (text := to_toml(session)):
                atomic_write_text(self.session_toml, text)
        except OSError as e:
            raise _not_writable(self.path, e) from e

    def remove_unfinished_files(self) -> None:
        """Remove the temporary files that a killed process left; call it only while holding the lock."""
        remove_temporary_files(self.path)

    def read_session(self) -> Session:
        """Settings from session.toml.

        Raises:
            SettingsError: there is no session in this folder, or its settings are those of another version of zk0.
        """
        try:
            return load_session(self.session_toml)
        except SettingsError as e:
            if not self.session_toml.is_file():
                raise
            raise SettingsError(
                f"{e}; if another version of zk0 began this session, resume it with that version, or start a new one "
                f"from a corrected copy of {self.session_toml}: zk0 run FILE"
            ) from e

    def check_not_locked(self) -> None:
        """Check that no other process works on this session; a folder that does not exist has none.

        Raises:
            SettingsError: another process holds the lock.
        """
        if (lock := self.path / ".lock").is_file():
            with lock.open() as handle:
                self._take_lock(handle)

    def _take_lock(self, handle: TextIO) -> None:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as e:
            handle.seek(0)
            owner = handle.read().strip() or "unknown"
            raise SettingsError(
                f"{self.path}: process {owner} is working on this session; wait for it or stop it"
            ) from e

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder's lock, so that no other process works on this session.

        A session that fails before its first round is recorded leaves no folder behind. The lock ends with the process,
        however it ends.

        Raises:
            SettingsError: another process holds the lock.
            DiskFull: the disk is full; finished files stay, and the error says how to resume.
        """
        with (self.path / ".lock").open("a+") as handle:
            self._take_lock(handle)
            try:
                with translate_disk_full(self.path):
                    handle.truncate(0)
                    handle.write(str(os.getpid()))
                    handle.flush()
                    yield
            except DiskFull as e:
                raise DiskFull(f"{e}, then continue with zk0 run --resume {self.path}") from e
            except Zk0Error:
                if not self.ledger.is_file():
                    shutil.rmtree(self.path, ignore_errors=True)
                raise


def _not_writable(path: Path, e: OSError) -> SettingsError:
    return SettingsError(f"output_dir: {path} cannot be written ({e.strerror}); choose another folder")

"""The folder of a session: which file lies where, and who is writing into it."""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tomli_w

from zk0.disk import room_for
from zk0.errors import DiskFull, SettingsError, Zk0Error
from zk0.session import Session, load_session

_HALVES = ("round-*/.*", "round-*/updates/.*", "models/.*")
"""Weights and policies are written under names that begin with a dot."""


class SessionFolder:
    """`outputs/<YYYY-MM-DD_HH-MM-SS>_<name>/`; paths inside records are relative to it, so it can be moved."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def name(self) -> str:
        """Tells this run of a session from all others."""
        return self.path.name

    @property
    def session_toml(self) -> Path:
        """Every setting of the session, defaults written out."""
        return self.path / "session.toml"

    @property
    def ledger(self) -> Path:
        """One line a finished round."""
        return self.path / "ledger.jsonl"

    @property
    def ground(self) -> Path:
        """What the session stands on: clients, judging sets, pooled statistics, the policy's recipe."""
        return self.path / "ground.json"

    @property
    def report(self) -> Path:
        """The page that shows it all; written last."""
        return self.path / "report.html"

    @property
    def release(self) -> Path:
        """Whether the last checkpoint left the house, and why."""
        return self.path / "release.json"

    @property
    def privacy_key(self) -> Path:
        """What the noise of a private session is drawn from: whoever reads it can take the noise away."""
        return self.path / "privacy.key"

    def round(self, number: int) -> Path:
        """Weights and updates of one round."""
        return self.path / f"round-{number:03d}"

    def weights(self, number: int) -> Path:
        """Global weights after a round."""
        return self.round(number) / "weights.safetensors"

    def control(self, number: int) -> Path:
        """SCAFFOLD's control variate of the server after a round."""
        return self.round(number) / "server_control.safetensors"

    def sent(self, number: int) -> Path:
        """Those weights as clients get them, where that is not as float32."""
        return self.round(number) / "sent.safetensors"

    def updates(self, number: int) -> Path:
        """Where the clients' answers of a round are spooled."""
        return self.round(number) / "updates"

    def checkpoint(self, number: int) -> Path:
        """A complete LeRobot policy folder."""
        return self.path / "models" / f"checkpoint_round_{number}"

    def rollouts(self, number: int) -> Path:
        """Videos and results of closed-loop attempts after a round."""
        return self.path / "evaluate" / f"round_{number}"

    def relative(self, path: Path) -> str:
        """A path inside this folder as records name it."""
        return str(path.relative_to(self.path))

    def create(self, session: Session) -> None:
        """Make the folder and write the settings down.

        Raises:
            SettingsError: the folder cannot be written, or it belongs to another session.
        """
        text = tomli_w.dumps(toml_values(session))
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            if self.session_toml.is_file():
                if self.session_toml.read_text(encoding="utf-8") != text:
                    raise SettingsError(
                        f"{self.path}: belongs to a session with other settings; resume it with --resume"
                    )
                return
            write_whole(self.session_toml, text)
        except OSError as e:
            raise _unwritable(self.path, e) from e

    def check_writable(self) -> None:
        """Raises SettingsError where nothing could be written into this folder; makes it if it is not there."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.path):
                return
        except OSError as e:
            raise _unwritable(self.path, e) from e

    def forget_halves(self) -> None:
        """Remove what a killed process left half-written: nobody else may be working in this folder."""
        for half in [f for pattern in _HALVES for f in self.path.glob(pattern)]:
            if half.is_dir():
                shutil.rmtree(half, ignore_errors=True)
            else:
                half.unlink(missing_ok=True)

    def session(self) -> Session:
        """The settings that were written down.

        Raises:
            SettingsError: there is no session in this folder.
        """
        return load_session(self.session_toml)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Nobody else works on this session meanwhile; one that fails before its first record leaves nothing.

        Raises:
            SettingsError: another process does.
            DiskFull: there is no room for something; what is finished is kept, and the error says how to go on.
        """
        with (self.path / ".lock").open("a+") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as e:
                handle.seek(0)
                owner = handle.read().strip() or "unknown"
                raise SettingsError(
                    f"{self.path}: process {owner} is working on this session; wait for it or stop it"
                ) from e
            try:
                with room_for(self.path):
                    handle.truncate(0)
                    handle.write(str(os.getpid()))
                    handle.flush()
                    yield
            except DiskFull as e:
                raise DiskFull(f"{e}, then go on with zk0 run --resume {self.path}") from e
            except Zk0Error:
                if not self.ledger.is_file():
                    shutil.rmtree(self.path, ignore_errors=True)
                raise


def _unwritable(path: Path, e: OSError) -> SettingsError:
    return SettingsError(f"output_dir: {path} cannot be written ({e.strerror}); choose another folder")


def write_whole(path: Path, text: str) -> None:
    """A small text file that is there whole or not at all.

    Raises:
        DiskFull: there is no room for it.
    """
    half = path.with_name(f"{path.name}.tmp")
    try:
        with room_for(path):
            half.write_text(text, encoding="utf-8")
            half.replace(path)
    finally:
        half.unlink(missing_ok=True)


def toml_values(session: Session) -> dict[str, Any]:
    """Every setting as TOML can say it: what is unset is left out."""
    return session.model_dump(mode="json", exclude_none=True)

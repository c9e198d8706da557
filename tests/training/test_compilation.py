"""When the layers of the action expert are compiled; tests/training/test_staging.py compares the results."""

from pathlib import Path
from typing import Any

import pytest
from loguru import logger

from zk0.errors import SettingsError
from zk0.settings.training_settings import LocalTrainingSettings
from zk0.training import compilation
from zk0.training.compilation import BACKEND, compile_backend

AMPERE = (8, 0)


class Measured:
    """Seconds of a gradient by backend, and what was measured."""

    def __init__(self, plain: float, compiled: float | RuntimeError) -> None:
        self._seconds = {None: plain, BACKEND: compiled}
        self.asked: list[str | None] = []

    def __call__(self, backend: str | None) -> float:
        self.asked.append(backend)
        found = self._seconds[backend]
        if isinstance(found, RuntimeError):
            raise found
        return found


@pytest.fixture(autouse=True)
def with_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine with Triton and a C compiler."""
    monkeypatch.setattr(compilation, "find_spec", lambda _: object())
    monkeypatch.setattr(compilation.shutil, "which", lambda name: f"/usr/bin/{name}")


@pytest.mark.parametrize(("plain", "compiled", "expected"), [(2.0, 1.0, BACKEND), (1.04, 1.0, None), (1.0, 2.0, None)])
def test_auto_takes_the_faster_way(plain: float, compiled: float, expected: str | None) -> None:
    measured = Measured(plain, compiled)
    assert compile_backend(LocalTrainingSettings(), AMPERE, 200, measured) == expected
    assert measured.asked == [BACKEND, None]


@pytest.mark.parametrize(
    ("changes", "capability", "steps"),
    [
        ({}, None, 1000),
        ({}, (6, 1), 1000),
        ({}, AMPERE, 199),
        ({"deterministic": True}, AMPERE, 1000),
        ({"features": "off"}, AMPERE, 1000),
        ({"compile": False}, AMPERE, 1000),
    ],
)
def test_where_it_cannot_win_nothing_is_measured(
    changes: dict[str, Any], capability: tuple[int, int] | None, steps: int
) -> None:
    measured = Measured(2.0, 1.0)
    assert compile_backend(LocalTrainingSettings(**changes), capability, steps, measured) is None
    assert measured.asked == []


def test_without_a_compiler_auto_does_not_try(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compilation.shutil, "which", lambda _: None)
    assert compile_backend(LocalTrainingSettings(), AMPERE, 1000, Measured(2.0, 1.0)) is None


def test_a_compiler_that_fails_is_reported() -> None:
    lines: list[str] = []
    sink = logger.add(lines.append, format="{message}")
    measured = Measured(2.0, RuntimeError("unsupported operation\nmore"))
    assert compile_backend(LocalTrainingSettings(), AMPERE, 1000, measured) is None
    logger.remove(sink)
    assert lines == ["the action expert is not compiled (RuntimeError: unsupported operation)\n"]


def test_the_setting_decides_without_a_measurement() -> None:
    measured = Measured(1.0, 2.0)
    assert compile_backend(LocalTrainingSettings(compile=True), None, 1, measured) == BACKEND
    assert measured.asked == []


def test_it_needs_cached_features() -> None:
    from zk0.settings.loading import load_session

    smoke = Path(__file__).parents[2] / "deployments/sessions/smoke.toml"
    with pytest.raises(SettingsError, match="which is not compiled"):
        load_session(smoke, {"training.compile": True, "training.features": "off"})

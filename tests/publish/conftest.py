"""Finished sessions, and a local Hub to push them to."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from finished_session import round_record, write_finished_session

from zk0.records import RoundRecord
from zk0.settings.loading import parse_session
from zk0.settings.session import Session
from zk0.storage.session_folder import SessionFolder


@pytest.fixture
def hub(hub_server: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A local Hub that the environment points to; large files are uploaded by LFS."""
    import huggingface_hub.constants

    monkeypatch.setenv("HF_ENDPOINT", hub_server.url)
    monkeypatch.setenv("HF_TOKEN", hub_server.token)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    return hub_server


@pytest.fixture
def evaluated_rounds() -> Callable[..., list[RoundRecord]]:
    """Rounds 0 to `last`, whose loss falls by `improvement` per round."""

    def build(last: int = 20, improvement: float = 0.01) -> list[RoundRecord]:
        return [round_record(number, 2.0 - improvement * number) for number in range(last + 1)]

    return build


@pytest.fixture
def finished_session(tmp_path: Path) -> Callable[..., SessionFolder]:
    """Folder of a finished session: ledger, weights of the last round, its saved policy."""

    def build(name: str = "s", rounds: int = 20, scale: float = 1.0, late: bool = False) -> SessionFolder:
        return write_finished_session(tmp_path / name, session(), rounds, scale, late)

    return build


def session() -> Session:
    """Settings of a session with a repository."""
    return parse_session(
        {
            "name": "s",
            "clients": [{"name": "a", "dataset": "x/a"}, {"name": "b", "dataset": "x/b"}],
            "evaluation": {"datasets": [{"dataset": "lab/unseen"}]},
            "publish": {"repo_id": "lab/arm"},
        },
        "conftest",
    )

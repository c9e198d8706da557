"""Finished sessions, and a local Hub to push them to."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from zk0.audit.ledger import Ledger
from zk0.records import Checkpoint, EpisodeScore, Evaluation, RoundRecord, SetScore
from zk0.settings.loading import parse_session
from zk0.settings.session import Session
from zk0.storage.session_folder import SessionFolder
from zk0.storage.sha256_sums import SUMS_FILE, sha256_of_folder, sums_text
from zk0.weights.writer import save_weights


@pytest.fixture
def hub(hub_server: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A local Hub that the environment points to; large files are uploaded by LFS."""
    import huggingface_hub.constants

    monkeypatch.setenv("HF_ENDPOINT", hub_server.url)
    monkeypatch.setenv("HF_TOKEN", hub_server.token)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    return hub_server


def evaluation(number: int, loss: float) -> Evaluation:
    """Evaluation of six episodes whose difficulty is the same in every round."""
    episodes = tuple(
        EpisodeScore(episode=i, frames=9, actions=90, policy_loss=loss + 0.1 * i + 0.001 * ((i * number) % 5),
                     action_error_degrees=3.0)
        for i in range(6)
    )  # fmt: skip
    mean = float(np.mean([e.policy_loss for e in episodes]))
    score = SetScore(
        dataset="lab/unseen", episodes=episodes, frames=54, policy_loss=mean, policy_loss_se=0.05,
        action_error_degrees=3.0, joint_error_degrees=(3.0,), horizon_error_degrees=(3.0,),
    )  # fmt: skip
    return Evaluation(
        round=number, policy_loss=mean, policy_loss_se=0.05, action_error_degrees=3.0, sets=(score,),
        normalization="pooled", seed=1, times=8, seconds=1.0,
    )  # fmt: skip


def round_record(number: int, loss: float, digest: str = "d" * 64) -> RoundRecord:
    """A finished round with an evaluation."""
    path = f"round-{number:03d}/weights.safetensors"
    return RoundRecord(
        round=number,
        checkpoint=Checkpoint(round=number, path=path, digest=digest, bytes=100),
        evaluation=evaluation(number, loss),
        seconds=1.0,
        finished_at="2026-01-01T00:00:00+00:00",
    )


@pytest.fixture
def evaluated_rounds() -> Callable[..., list[RoundRecord]]:
    """Rounds 0 to `last`, whose loss falls by `improvement` per round."""

    def build(last: int = 20, improvement: float = 0.01) -> list[RoundRecord]:
        return [round_record(number, 2.0 - improvement * number) for number in range(last + 1)]

    return build


@pytest.fixture
def finished_session(tmp_path: Path) -> Callable[..., SessionFolder]:
    """Folder of a finished session: ledger, weights of the last round, its saved policy."""

    def build(name: str = "s", rounds: int = 20, scale: float = 1.0) -> SessionFolder:
        here = SessionFolder(tmp_path / name)
        here.create(session())
        rng = np.random.default_rng(0)
        weights = {"expert.w": (scale * rng.standard_normal((40, 50))).astype(np.float32)}
        digest, _ = save_weights(here.weights(rounds), weights)
        for number in range(rounds + 1):
            record = round_record(number, 2.0 - 0.01 * number, digest)
            Ledger(here.ledger).append(record)
        folder = here.checkpoint(rounds)
        frozen = {"vlm.w": rng.standard_normal((30, 30)).astype(np.float32)}
        save_weights(folder / "model.safetensors", weights | frozen)
        for part in ("config.json", "policy_preprocessor.json", "policy_postprocessor.json", "metrics.json"):
            (folder / part).write_text(json.dumps({"of": name, "part": part}))
        (folder / "README.md").write_text(f"---\nlicense: apache-2.0\n---\n# {name}\n")
        (folder / "statistics" / "other").mkdir(parents=True)
        (folder / "statistics" / "other" / "policy_preprocessor.json").write_text("{}")
        (folder / SUMS_FILE).write_text(sums_text(sha256_of_folder(folder)))
        return here

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

"""A finished session whose rounds were never trained: ledger, weights of the last round, its saved policy."""

import json
from pathlib import Path

import numpy as np

from zk0.audit.ledger import Ledger
from zk0.audit.policy_digests import record_late_policy
from zk0.records import Checkpoint, EpisodeScore, Evaluation, RoundRecord, SetScore
from zk0.settings.session import Session
from zk0.storage.session_folder import SessionFolder
from zk0.storage.sha256_sums import SUMS_FILE, sha256_of_folder, sums_text
from zk0.weights.writer import save_weights


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


def write_finished_session(
    folder: Path, session: Session, rounds: int | None = None, scale: float = 1.0, late: bool = False
) -> SessionFolder:
    """Write the folder of a session of which all rounds are finished; its name goes into the files of the policy.

    `late`: the policy is saved when all rounds are recorded.
    """
    here, rounds = SessionFolder(folder), session.rounds if rounds is None else rounds
    here.create(session)
    rng = np.random.default_rng(0)
    weights = {"expert.w": (scale * rng.standard_normal((40, 50))).astype(np.float32)}
    digest, _ = save_weights(here.weights(0), weights)
    save_weights(here.weights(rounds), weights)
    saved = here.checkpoint(rounds)
    frozen = {"vlm.w": rng.standard_normal((30, 30)).astype(np.float32)}
    save_weights(saved / "model.safetensors", weights | frozen)
    for part in ("config.json", "policy_preprocessor.json", "policy_postprocessor.json", "metrics.json"):
        (saved / part).write_text(json.dumps({"of": here.path.name, "part": part}))
    (saved / "README.md").write_text(f"---\nlicense: apache-2.0\n---\n# {here.path.name}\n")
    (saved / "statistics" / "other").mkdir(parents=True)
    (saved / "statistics" / "other" / "policy_preprocessor.json").write_text("{}")
    digests = sha256_of_folder(saved)
    (saved / SUMS_FILE).write_text(sums_text(digests))
    recorded = {name: digests[name] for name in digests if name not in ("README.md", "metrics.json")}
    for number in range(rounds + 1):
        record = round_record(number, 2.0 - 0.01 * number, digest)
        files = recorded if number == rounds and not late else {}
        Ledger(here.ledger).append(record.model_copy(update={"policy_files": files}))
    if late:
        record_late_policy(here, rounds, recorded)
    return here

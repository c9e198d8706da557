"""The results of a session as pandas tables: for notebooks and scripts (an example is in docs/running.md)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zk0.audit.ledger import Ledger
from zk0.errors import SettingsError
from zk0.records import Rollout, RoundRecord, SetScore
from zk0.settings.home_folder import expand_home
from zk0.settings.session import Session
from zk0.storage.results import read_rollouts
from zk0.storage.session_folder import SessionFolder

if TYPE_CHECKING:
    import pandas as pd

ROUND_COLUMNS = ("round", "policy_loss", "policy_loss_se", "action_error_degrees", "lr", "mu", "clients", "seconds")
SCORE_COLUMNS = ("round", "client", "dataset", "episode", "frames", "actions", "policy_loss", "action_error_degrees")
UPDATE_COLUMNS = ("round", "client", "dataset", "examples", "weight", "update_norm", "cosine_to_mean", "bytes")
ATTEMPT_COLUMNS = ("round", "task", "client", "seed", "success", "steps", "duration_seconds", "smoothness")


@dataclass(frozen=True)
class SessionResults:
    """Everything that a session has measured. Each method returns a new table; a value that was not measured is NaN."""

    folder: SessionFolder
    session: Session
    history: Sequence[RoundRecord]
    """The finished rounds, as the ledger records them; the first one is round 0, the start policy."""
    rollouts: Sequence[Rollout]

    def rounds(self) -> "pd.DataFrame":
        """Return one row for each finished round: mean scores on the evaluation sets, and what the schedule decided."""
        return _table(
            ROUND_COLUMNS,
            (
                (
                    r.round,
                    r.evaluation and r.evaluation.policy_loss,
                    r.evaluation and r.evaluation.policy_loss_se,
                    r.evaluation and r.evaluation.action_error_degrees,
                    r.decision and r.decision.lr,
                    r.decision and r.decision.mu,
                    len(r.contributions),
                    r.seconds,
                )
                for r in self.history
            ),
        )

    def scores(self) -> "pd.DataFrame":
        """Return one row for each evaluated episode of each round; `client` holds it out, and is None for the others.

        Rows of two rounds with the same dataset and episode can be paired.
        """
        return _table(SCORE_COLUMNS, (row for record in self.history for row in _score_rows(record)))

    def updates(self) -> "pd.DataFrame":
        """Return one row for each update that was averaged."""
        return _table(
            UPDATE_COLUMNS,
            (
                (r.round, u.client, u.dataset, u.examples, c.weight, c.update_norm, c.cosine_to_mean, u.bytes)
                for r in self.history
                for u in r.updates
                for c in r.contributions
                if c.client == u.client
            ),
        )

    def attempts(self) -> "pd.DataFrame":
        """Return one row for each attempt in the simulator; `client` is the one whose dataset has the task."""
        return _table(
            ATTEMPT_COLUMNS,
            (
                (r.round, r.task, r.client, r.seed, r.success, r.steps, r.duration_seconds, r.smoothness)
                for r in self.rollouts
            ),
        )

    def policy_folder(self, round_number: int | None = None) -> Path:
        """Return the folder of a saved policy, which LeRobot loads by `--policy.path`.

        Args:
            round_number: of the policy; None: the last one that was saved.

        Raises:
            SettingsError: no policy was saved in that round, or in any.
        """
        saved = [r.round for r in self.history if self.folder.checkpoint(r.round).is_dir()]
        if not saved or round_number not in (None, *saved):
            wanted = "a policy" if round_number is None else f"the policy of round {round_number}"
            rounds = ", ".join(map(str, saved)) or "none"
            raise SettingsError(f"{self.folder.path}: expected {wanted}, found policies of rounds: {rounds}")
        return self.folder.checkpoint(saved[-1] if round_number is None else round_number)


def read_session(folder: Path | str) -> SessionResults:
    """Read the results of a session, finished or not.

    Args:
        folder: of the session, as `zk0 run` names it.

    Raises:
        SettingsError: this is not the folder of a session.
        LedgerError: its ledger contradicts itself.
        EvaluationError: a result of an attempt cannot be read.
    """
    found = SessionFolder(expand_home(folder).resolve())
    if not found.session_toml.is_file():
        raise SettingsError(f"{found.path}: expected the folder of a session, found no {found.session_toml.name} in it")
    history, rollouts = Ledger(found.ledger).read(), read_rollouts(found.rollouts_folder)
    return SessionResults(found, found.read_session(), history, rollouts)


def _score_rows(record: RoundRecord) -> Iterator[tuple[Any, ...]]:
    scores: list[tuple[str | None, SetScore]] = []
    if record.evaluation:
        scores += [(None, score) for score in record.evaluation.sets]
    if record.client_evaluation:
        scores += [(one.client, one.score) for one in record.client_evaluation.scores]
    for client, score in scores:
        for e in score.episodes:
            yield (
                *(record.round, client, score.dataset, e.episode),
                *(e.frames, e.actions, e.policy_loss, e.action_error_degrees),
            )


def _table(columns: Sequence[str], rows: Iterator[tuple[Any, ...]]) -> "pd.DataFrame":
    import pandas as pd

    return pd.DataFrame(list(rows), columns=list(columns))

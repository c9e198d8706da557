"""Write the metric files of a session."""

import json
from collections.abc import Sequence
from pathlib import Path

from zk0.errors import ReportError
from zk0.records import Record, Rollout, RoundRecord
from zk0.report.metrics import action_error_history, federated_metrics, policy_loss_history, server_eval
from zk0.storage.atomic import atomic_write_bytes


def write_metric_files(folder: Path, history: Sequence[RoundRecord], rollouts: Sequence[Rollout] = ()) -> None:
    """Write federated_metrics.json, policy_loss_history.json, action_error_history.json and, for every round,
    server/round_N_server_eval.json.

    Args:
        folder: of the session.
        history: the finished rounds.
        rollouts: closed-loop attempts of these rounds' models.

    Raises:
        ReportError: a file cannot be written.
    """
    _write_json(folder / "federated_metrics.json", federated_metrics(history, rollouts))
    _write_json(folder / "policy_loss_history.json", policy_loss_history(history))
    _write_json(folder / "action_error_history.json", action_error_history(history))
    for record in history:
        _write_json(folder / "server" / f"round_{record.round}_server_eval.json", server_eval(record, rollouts))


def _write_json(path: Path, content: Record | Sequence[Record]) -> None:
    if isinstance(content, Record):
        plain: object = content.model_dump(mode="json")
    else:
        plain = [record.model_dump(mode="json") for record in content]
    text = json.dumps(plain, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    atomic_write_bytes(path, text.encode(), durable=False, error=ReportError)

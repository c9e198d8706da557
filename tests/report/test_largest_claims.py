"""The largest and smallest numbers that an update may claim break neither the next decision nor report and metrics."""

import json
from pathlib import Path

import pytest

from zk0.records import ClientMetrics, Member, Rollout, RoundRecord
from zk0.report.metric_files import write_metric_files
from zk0.report.page.session_page import write_session_report
from zk0.report.page.session_page_charts import draw_session_page_charts
from zk0.rules.round_decision import decide_round
from zk0.settings.loading import to_toml
from zk0.settings.session import Session

LARGEST = ClientMetrics(
    policy_loss=1e15, fedprox_loss=1e15, grad_norm=1e15, update_norm=1e15,
    local_steps=10**12, lr_first=1e15, lr_last=1e15, seconds=1e9,
)  # fmt: skip
SMALLEST = ClientMetrics(
    policy_loss=0.0, fedprox_loss=0.0, grad_norm=5e-324, update_norm=0.0,
    local_steps=0, lr_first=0.0, lr_last=5e-324, seconds=0.0,
)  # fmt: skip


def claimed(record: RoundRecord, metrics: ClientMetrics) -> RoundRecord:
    """Return the round with these numbers of its first client."""
    numbers = {"metrics": metrics, "examples": 2**29 - 1, "bytes": 10**12}
    updates = [u.model_copy(update=numbers if i == 0 else {}) for i, u in enumerate(record.updates)]
    found = record.model_copy(update={"updates": tuple(updates)})
    return RoundRecord.model_validate_json(found.model_dump_json())  # within the bounds of an answer


@pytest.mark.parametrize("metrics", [LARGEST, SMALLEST], ids=["largest", "smallest"])
def test_numbers_at_the_bounds_are_decided_on_and_reported(
    metrics: ClientMetrics,
    tmp_path: Path,
    session: Session,
    members: list[Member],
    history: list[RoundRecord],
    rollouts: list[Rollout],
) -> None:
    rows = [claimed(record, metrics) for record in history]
    adaptive = {"adaptive_lr_enabled": True, "adaptive_mu_enabled": True, "dynamic_training_decay": True}
    scheduler = session.scheduler.model_copy(update=adaptive)
    longer = session.model_copy(update={"rounds": 9, "scheduler": scheduler})
    decision = decide_round(longer, rows)
    assert 0 < decision.lr <= 10 * session.training.lr
    write_metric_files(tmp_path, rows, rollouts)
    for file in tmp_path.rglob("*.json"):
        json.loads(file.read_text(), parse_constant=pytest.fail)  # called for NaN and infinity
    assert len(list(tmp_path.rglob("*.json"))) > 3
    write_session_report(
        tmp_path / "report.html",
        session=session,
        members=members,
        history=rows,
        rollouts=rollouts,
        charts=draw_session_page_charts(longer, rows),
        folder=tmp_path,
        session_toml=to_toml(session),
    )
    assert "</html>" in (tmp_path / "report.html").read_text(encoding="utf-8")

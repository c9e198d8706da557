"""The charts of a session's report, drawn once for report.html, for the report in the UI and for the PNG files."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from zk0.records import Record, RoundRecord
from zk0.report.charts.action_error_chart import action_error_by_joint_figure
from zk0.report.charts.cross_task_matrix import matrix_figure
from zk0.report.charts.inline import InlineChart, inline_chart
from zk0.report.charts.session_charts import round_figures, write_chart_files
from zk0.report.conclusions import session_conclusions
from zk0.report.metrics import sorted_by_round
from zk0.report.tables import score_tables
from zk0.settings.session import Session


class SessionPageCharts(Record):
    """The charts of a session, each in both themes."""

    policy_loss: InlineChart
    action_error: InlineChart
    federated_metrics: InlineChart
    joints: InlineChart
    matrix: InlineChart

    @property
    def by_round(self) -> tuple[InlineChart, InlineChart, InlineChart]:
        """Policy loss, action error, and clients and schedule."""
        return self.policy_loss, self.action_error, self.federated_metrics

    def write_files(self, folder: Path) -> None:
        """Write the charts by round into the session's folder, as PNG in the light theme.

        Raises:
            ReportError: a file cannot be written.
        """
        write_chart_files([chart.light_png for chart in self.by_round], folder)


def draw_session_page_charts(session: Session, history: Sequence[RoundRecord]) -> SessionPageCharts:
    """Draw all charts of the report."""
    rows = sorted_by_round(history)
    panels = (
        "Training and held-out losses, learning rate, norms of the updates, their cosines to the mean, mu, shares of "
        "the aggregated delta, leave-one-out shifts and proximal losses by round"
    )
    alt_texts = (
        f"Line chart by round. {session_conclusions(rows, ()).sentences[0]}",
        "Action error on unseen data by round.",
        f"{panels}; the numbers are in the tables below.",
    )
    draw_by_round = round_figures(rows, session.contract.units)
    loss, error, metrics = (inline_chart(draw, text) for draw, text in zip(draw_by_round, alt_texts, strict=True))
    return SessionPageCharts(
        policy_loss=loss,
        action_error=error,
        federated_metrics=metrics,
        joints=_joint_chart(session, rows),
        matrix=_matrix_chart(session, rows),
    )


def _matrix_chart(session: Session, rows: Sequence[RoundRecord]) -> InlineChart:
    alt_text = "Heat map of the loss of every task under every evaluated global model; the table below has the numbers."
    return inline_chart(partial(matrix_figure, rows, session.normalization), alt_text)


def _joint_chart(session: Session, rows: Sequence[RoundRecord]) -> InlineChart:
    scores = [s for r in rows if r.evaluation for s in r.evaluation.sets]
    joints = score_tables.joint_labels(session, len(scores[0].joint_error_degrees) if scores else 0)
    draw = partial(action_error_by_joint_figure, rows, joints, session.contract.units)
    alt_text = "Action error by joint and by step of the chunk; the table below has the numbers of the joints."
    return inline_chart(draw, alt_text)

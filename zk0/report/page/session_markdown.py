"""Report of a session as Markdown, for the Prefect UI."""

from collections.abc import Sequence

from zk0.records import Member, Rollout, RoundRecord
from zk0.report.conclusions import conclusions_with_policy
from zk0.report.key_results import key_results
from zk0.report.metrics import sorted_by_round
from zk0.report.page.session_page_charts import SessionPageCharts
from zk0.report.tables import client_tables, round_tables
from zk0.report.tables.arrival_tables import waiting_table
from zk0.report.tables.markdown import escape_markdown, markdown_table
from zk0.report.tables.sum_tables import sum_table
from zk0.rules.release import Release
from zk0.settings.session import Session


def session_report_markdown(
    *,
    session: Session,
    members: Sequence[Member],
    history: Sequence[RoundRecord],
    rollouts: Sequence[Rollout],
    charts: SessionPageCharts,
    release: Release | None = None,
) -> str:
    """A short report in GitHub's Markdown with embedded charts; well below 1 MB."""
    rows = sorted_by_round(history)
    conclusions = conclusions_with_policy(session, rows, rollouts)
    results = [(r.title, r.text, r.note) for r in key_results(session, members, rows, rollouts)]
    parts = [
        f"# {escape_markdown(session.name)}",
        f"**{escape_markdown(conclusions.headline)}**",
        "\n\n".join(escape_markdown(s) for s in conclusions.sentences),
        *([f"Release: {escape_markdown(release.summary())}."] if release else []),
        markdown_table(("result", "value", "note"), results),
        f"![Policy loss on unseen data by round]({charts.policy_loss.light})",
        "## Rounds",
        markdown_table(*round_tables.round_table(session, rows).as_text()),
        "## Clients",
        markdown_table(*client_tables.client_table(members, rows).as_text()),
        f"![Clients and schedule by round]({charts.federated_metrics.light})",
    ]
    more = {
        "Staleness and waiting time": waiting_table(rows),
        "Secure aggregation": sum_table(rows),
        "Rejected updates": round_tables.refusal_table(rows),
    }
    for title, table in more.items():
        parts += [f"## {title}", markdown_table(*table.as_text())] if table.rows else []
    return "\n\n".join(parts) + "\n"

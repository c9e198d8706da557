"""Table of rounds with secure aggregation: whose updates the server has summed."""

from collections.abc import Sequence

from zk0.records import RoundRecord
from zk0.report.metrics import sorted_by_round
from zk0.report.tables.table import Column, Table, decimal_cell, integer_cell, text_cell


def sum_table(history: Sequence[RoundRecord]) -> Table:
    """Every sum of updates: its clients, those that dropped out, and the roster that they agreed on."""
    columns = (
        Column(title="round"),
        Column(title="updates in the sum"),
        Column(title="of", kind="text"),
        Column(title="dropped out", kind="text"),
        Column(title="answers needed"),
        Column(title="bits"),
        Column(title="share of the mean"),
        Column(title="roster", kind="text"),
    )
    rows = tuple(
        (
            integer_cell(record.round),
            integer_cell(update.client_count),
            text_cell(", ".join(update.summed.clients)),
            text_cell(", ".join(update.summed.dropped)),
            integer_cell(update.summed.threshold),
            integer_cell(update.summed.bits),
            decimal_cell(update.summed.share, 3),
            text_cell(update.summed.roster[:12]),
        )
        for record in sorted_by_round(history)
        for update in record.updates
        if update.summed
    )
    return Table(caption="Sums of updates", columns=columns, rows=rows)

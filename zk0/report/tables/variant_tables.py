"""Table of a comparison of settings."""

from collections.abc import Sequence

from zk0.report.tables.benchmark_tables import METRIC_DECIMALS, METRIC_TITLES
from zk0.report.tables.table import Cell, Column, Table, integer_cell, interval_cell, text_cell
from zk0.stats.variant_comparison import VariantSummary


def variant_table(summaries: Sequence[VariantSummary]) -> Table:
    """Mean of each variant, and its paired difference to the first one."""
    columns = (
        Column(title="metric", kind="text"),
        Column(title="evaluated on", kind="text"),
        Column(title="variant", kind="text"),
        Column(title="seeds"),
        Column(title="units", unit="episodes or attempts"),
        Column(title="mean", unit="95 % interval"),
        Column(title="change to the first", unit="95 % interval, paired"),
    )
    return Table(caption="Comparison of settings", columns=columns, rows=tuple(map(_variant_row, summaries)))


def _variant_row(row: VariantSummary) -> tuple[Cell, ...]:
    places = METRIC_DECIMALS[row.metric]
    return (
        text_cell(METRIC_TITLES[row.metric]),
        text_cell(row.evaluated_on),
        text_cell(row.variant),
        integer_cell(row.seeds),
        integer_cell(row.units),
        interval_cell(row.mean, row.interval, places),
        interval_cell(row.change, row.change_interval, places),
    )

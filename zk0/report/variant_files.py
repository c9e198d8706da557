"""Files of a comparison of settings: tables for people and papers, numbers for programs, charts."""

from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from matplotlib.figure import Figure

from zk0.report.charts.variant_chart import variant_figure
from zk0.report.tables.latex import latex_table
from zk0.report.tables.markdown import markdown_table
from zk0.report.tables.variant_tables import variant_table
from zk0.stats.baseline_comparison import values_by_unit
from zk0.stats.model_comparison import METRICS
from zk0.stats.variant_comparison import VariantRun, VariantSummary
from zk0.storage.atomic import atomic_path, atomic_write_bytes, atomic_write_text

if TYPE_CHECKING:
    import pandas as pd

VALUE_COLUMNS = ("variant", "seed", "metric", "evaluated_on", "owner", "subject", "unit", "value")
"""Columns of values.csv and values.parquet: one row for each episode or attempt of each model."""


def write_variant_files(
    folder: Path, runs: Sequence[VariantRun], summaries: Sequence[VariantSummary], note: str
) -> None:
    """Write summary.csv, values.csv and values.parquet, table.md, table.tex, chart.svg and chart.pdf.

    Args:
        folder: where they are written; older ones are replaced.
        runs: every model with its results.
        summaries: of the runs.
        note: how the numbers were measured, below chart and table.
    """
    import pandas as pd

    table = variant_table(summaries)
    _write_csv(folder / "summary.csv", _summary_frame(summaries))
    values = pd.DataFrame(list(_value_rows(runs)), columns=list(VALUE_COLUMNS))
    _write_csv(folder / "values.csv", values)
    with atomic_path(folder / "values.parquet") as temporary:
        values.to_parquet(temporary, index=False)
    atomic_write_text(folder / "table.md", f"{markdown_table(*table.as_text())}\n\n{note}\n")
    atomic_write_text(folder / "table.tex", latex_table(table))
    figure = variant_figure(summaries, note)
    for kind in ("svg", "pdf"):
        atomic_write_bytes(folder / f"chart.{kind}", figure_vector(figure, kind))


def figure_vector(figure: Figure, kind: Literal["svg", "pdf"]) -> bytes:
    """The figure as SVG or PDF with text as text; the same figure gives the same bytes."""
    from matplotlib import rc_context

    content = BytesIO()
    undated: dict[str, Any] = {"Date": None} if kind == "svg" else {"CreationDate": None}
    with rc_context({"svg.hashsalt": "zk0", "svg.fonttype": "none", "pdf.fonttype": 42}):
        figure.savefig(content, format=kind, metadata=undated)
    return content.getvalue()


def _write_csv(path: Path, frame: "pd.DataFrame") -> None:
    atomic_write_text(path, frame.to_csv(index=False))


def _summary_frame(summaries: Sequence[VariantSummary]) -> "pd.DataFrame":
    import pandas as pd

    rows = []
    for one in summaries:
        low, high = one.interval or (None, None)
        change_low, change_high = one.change_interval or (None, None)
        flat = one.model_dump(exclude={"interval", "change_interval"})
        rows.append(flat | {"low": low, "high": high, "change_low": change_low, "change_high": change_high})
    return pd.DataFrame(rows)


def _value_rows(runs: Sequence[VariantRun]) -> Iterator[tuple[Any, ...]]:
    for run in runs:
        for metric in METRICS:
            for (owner, subject, unit), value in values_by_unit(run.results, metric).items():
                group = "unseen" if owner is None else "held out"
                yield run.variant, run.seed, metric, group, owner, subject, unit, value

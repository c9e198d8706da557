"""`zk0 compare`: models side by side, paired."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.failure import one_clear_line
from zk0.errors import SettingsError

if TYPE_CHECKING:
    from zk0.comparison import Difference, Measured


def compare(
    folders: Annotated[
        list[Path], typer.Argument(help="Folders of sessions, or of zk0 rollout; the first is the base.")
    ],
    metrics: Annotated[str, typer.Option(help="Some of policy_loss, action_error, success_rate.")] = "policy_loss",
    as_json: Annotated[bool, typer.Option("--json", help="JSON on stdout, for machines.")] = False,
) -> None:
    """Compare the last models of several folders with that of the first, on the same episodes and attempts.

    Differences are paired and have 95 % intervals; one that leaves zero out is told apart. What was measured with other
    statistics, seeds, episodes or conditions is refused.
    """
    with one_clear_line():
        import json

        from zk0.comparison import compare as compared
        from zk0.comparison import parse_metrics, read_measured

        if len(folders) < 2:
            raise SettingsError("zk0 compare: one folder has nothing to be compared with; give two or more")
        wanted = parse_metrics(metrics)
        base, *others = [read_measured(folder.resolve()) for folder in folders]
        found = [(other, compared(base, other, wanted)) for other in others]
        if as_json:
            said = [
                {"before": base.label, "after": o.label, "rows": [r.model_dump() for r in rows]} for o, rows in found
            ]
            typer.echo(json.dumps(said, indent=2))
            return
        for other, rows in found:
            show_differences(f"{_named(other)} against {_named(base)}", rows)


def show_differences(title: str, rows: "Sequence[Difference]") -> None:
    """One table, better in green, worse in red."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left")
    for heading in ("metric", "what"):
        table.add_column(heading, overflow="fold")
    for heading in ("pairs", "before", "after", "change (95 % interval)"):
        table.add_column(heading, justify="right")
    for row in rows:
        style = _style(row)
        numbers = [f"{100 * v:.0f} %" if row.metric == "success_rate" else f"{v:.4f}" for v in (row.before, row.after)]
        table.add_row(row.metric, Text(row.what), str(row.pairs), *numbers, Text(_change(row), style=style))
    Console().print(table)


def _named(one: "Measured") -> str:
    return one.label if one.round is None else f"{one.label}, round {one.round}"


def _change(row: "Difference") -> str:
    scale, places = (100, 0) if row.metric == "success_rate" else (1, 4)
    text = f"{scale * row.change:+.{places}f}"
    if row.interval is None:
        return f"{text} (no interval)"
    low, high = (scale * end for end in row.interval)
    return f"{text} ({low:+.{places}f} to {high:+.{places}f})"


def _style(row: "Difference") -> str:
    if row.interval is None or row.interval[0] <= 0 <= row.interval[1]:
        return ""
    rose = row.interval[0] > 0
    return "green" if rose == (row.metric == "success_rate") else "red"

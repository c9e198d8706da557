"""`zk0 compare`: paired differences between the models of several folders."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.cli.errors_to_exit_codes import errors_to_exit_codes
from zk0.errors import SettingsError

if TYPE_CHECKING:
    from zk0.stats.folder_comparison import FolderComparison
    from zk0.stats.model_comparison import ModelDifference

_SCALES = {"policy_loss": (1, 3), "action_error": (1, 2), "success_rate": (100, 0)}
"""Factor and number of decimals by which a metric is shown."""
_TITLES = {"policy_loss": "policy loss", "action_error": "action error (degrees)", "success_rate": "success rate (%)"}


def compare_sessions(
    folders: Annotated[
        list[Path], typer.Argument(help="Folders of sessions, or of `zk0 rollout`; all are compared with the first.")
    ],
    metrics: Annotated[
        str | None,
        typer.Option(
            help="One or more of policy_loss, action_error, success_rate, separated by commas; without it, all that "
            "both have.",
            show_default=False,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")] = False,
) -> None:
    """Compare the last models of several folders with that of the first, on the same episodes and attempts.

    Shows which settings of the sessions differ, too. Differences are paired and have 95 % intervals; a difference is
    significant where its interval excludes zero. Models that were evaluated with other statistics, seeds, episodes or
    conditions are refused.
    """
    with errors_to_exit_codes():
        import json

        from zk0.stats.folder_comparison import compare_folders
        from zk0.stats.model_comparison import parse_metrics

        if len(folders) < 2:
            raise SettingsError("zk0 compare: expected two or more folders, found one")
        chosen = parse_metrics(metrics) if metrics is not None else None
        found = [compare_folders(folders[0].resolve(), other.resolve(), chosen) for other in folders[1:]]
        if as_json:
            typer.echo(json.dumps([one.model_dump() for one in found], indent=2))
            return
        for one in found:
            _print_comparison(one)


def _print_comparison(comparison: "FolderComparison") -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    if comparison.settings:
        table = Table(title="settings that differ", title_justify="left", title_style="bold", box=None, pad_edge=False)
        for heading in ("", comparison.before, comparison.after):
            table.add_column(Text(heading), overflow="fold", header_style="dim")
        for row in comparison.settings:
            table.add_row(*map(Text, row))
        Console().print(table, "")
    print_differences(comparison.title, comparison.rows)
    for reason in comparison.left_out:
        typer.echo(f"not compared: {reason}", err=True)


def print_differences(title: str, rows: "Sequence[ModelDifference]") -> None:
    """Print one table; a significant difference is marked as better (green) or worse (red)."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left", title_style="bold", box=None, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column("", overflow="fold")
    for heading in ("pairs", "before", "after", "change", "95 % interval"):
        table.add_column(heading, justify="right", no_wrap=True, header_style="dim")
    table.add_column("", no_wrap=True)
    for at, row in enumerate(rows):
        if at == 0 or row.metric != rows[at - 1].metric:
            table.add_row(Text(_TITLES[row.metric], style="bold"))
        scale, places = _SCALES[row.metric]
        values = [f"{scale * v:.{places}f}" for v in (row.before, row.after)]
        interval = " to ".join(f"{scale * end:+.{places}f}" for end in row.interval) if row.interval else "none"
        conclusion, style = _conclusion(row)
        change = (f"{scale * row.change:+.{places}f}", interval, conclusion)
        table.add_row(Text(f"  {row.subject}"), str(row.pairs), *values, *(Text(text, style=style) for text in change))
    Console().print(table, "")


def _conclusion(row: "ModelDifference") -> tuple[str, str]:
    """Return "better", "worse" or nothing, and its color: more success is better, more loss or error is worse."""
    if row.interval is None or row.interval[0] <= 0 <= row.interval[1]:
        return "", ""
    rose = row.interval[0] > 0
    return ("better", "green") if rose == (row.metric == "success_rate") else ("worse", "red")

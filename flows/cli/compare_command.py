"""`zk0 compare`: paired differences between the models of several folders."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.cli.errors_to_exit_codes import errors_to_exit_codes
from zk0.errors import SettingsError

if TYPE_CHECKING:
    from zk0.stats.model_comparison import ModelDifference, ModelResults

_SCALES = {"policy_loss": (1, 3), "action_error": (1, 2), "success_rate": (100, 0)}
"""Factor and number of decimals by which a metric is shown."""
_TITLES = {"policy_loss": "policy loss", "action_error": "action error (degrees)", "success_rate": "success rate (%)"}


def compare_sessions(
    folders: Annotated[
        list[Path], typer.Argument(help="Folders of sessions, or of `zk0 rollout`; all are compared with the first.")
    ],
    metrics: Annotated[
        str, typer.Option(help="One or more of policy_loss, action_error, success_rate, separated by commas.")
    ] = "policy_loss",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")] = False,
) -> None:
    """Compare the last models of several folders with that of the first, on the same episodes and attempts.

    Differences are paired and have 95 % intervals; a difference is significant where its interval excludes zero. Models
    that were evaluated with other statistics, seeds, episodes or conditions are refused.
    """
    with errors_to_exit_codes():
        import json

        from zk0.stats.model_comparison import compare_models, parse_metrics, read_model_results

        if len(folders) < 2:
            raise SettingsError("zk0 compare: expected two or more folders, found one")
        chosen = parse_metrics(metrics)
        base, *others = [read_model_results(folder.resolve()) for folder in folders]
        found = [(other, compare_models(base, other, chosen)) for other in others]
        if as_json:
            texts = [
                {"before": base.label, "after": o.label, "rows": [r.model_dump() for r in rows]} for o, rows in found
            ]
            typer.echo(json.dumps(texts, indent=2))
            return
        for other, rows in found:
            print_differences(f"{_title(other)} against {_title(base)}", rows)


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


def _title(results: "ModelResults") -> str:
    return results.label if results.round is None else f"{results.label}, round {results.round}"


def _conclusion(row: "ModelDifference") -> tuple[str, str]:
    """Return "better", "worse" or nothing, and its color: more success is better, more loss or error is worse."""
    if row.interval is None or row.interval[0] <= 0 <= row.interval[1]:
        return "", ""
    rose = row.interval[0] > 0
    return ("better", "green") if rose == (row.metric == "success_rate") else ("worse", "red")

"""`zk0 compare`: models side by side, paired."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.failure import one_clear_line
from zk0.errors import SettingsError

if TYPE_CHECKING:
    from zk0.comparison import Difference, Measured

_SCALES = {"policy_loss": (1, 3), "action_error": (1, 2), "success_rate": (100, 0)}
"""What a number is shown times, and its decimals."""
_TITLES = {"policy_loss": "policy loss", "action_error": "action error (degrees)", "success_rate": "success rate (%)"}


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
    """One table; what is told apart is said in a word, and in green or red."""
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
        ends = " to ".join(f"{scale * end:+.{places}f}" for end in row.interval) if row.interval else "none"
        told, style = _told(row)
        changed = (f"{scale * row.change:+.{places}f}", ends, told)
        table.add_row(Text(f"  {row.what}"), str(row.pairs), *values, *(Text(text, style=style) for text in changed))
    Console().print(table, "")


def _named(one: "Measured") -> str:
    return one.label if one.round is None else f"{one.label}, round {one.round}"


def _told(row: "Difference") -> tuple[str, str]:
    """What the interval says, and its colour."""
    if row.interval is None or row.interval[0] <= 0 <= row.interval[1]:
        return "", ""
    rose = row.interval[0] > 0
    return ("better", "green") if rose == (row.metric == "success_rate") else ("worse", "red")

"""What left a machine, and what a server took, as tables that fit a terminal; `--json` shows all there is."""

from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from zk0.federation.receipts import Audited
    from zk0.journal import Accepted

_RIGHT = ("round", "text", "weights", "norm")
_DIGITS = 8


def show_audit(found: "Sequence[Audited]") -> None:
    """One row a message under its session, and what was checked."""
    console = Console()
    for session, messages in groupby(found, lambda one: one.sent.to):
        table = _table(session, ("when", "asked", "round", "text", "weights", "norm", "digest", "average"))
        for one in messages:
            sent, update, weights = one.sent, one.update, one.sent.weights
            averaged = "" if update is None else f"root {one.receipt.root[:_DIGITS]}" if one.receipt else "no receipt"
            table.add_row(
                *(_minute(sent.at), sent.kind, _number(sent.round), f"{len(sent.text.encode()):,}"),
                *((f"{weights.bytes:,}", _norm(update.metrics.update_norm)) if weights and update else ("", "")),
                *(weights.digest[:_DIGITS] if weights else "", averaged),
            )
        console.print(table)
    updates = [one for one in found if one.update is not None]
    proved = sum(one.receipt is not None for one in updates)
    console.print(f"{len(found)} messages left this machine (text and weights in bytes)")
    console.print(f"chain and signatures hold; {proved} of {len(updates)} updates are proved to be in their average")


def show_accepted(found: "Sequence[Accepted]", public_key: str) -> None:
    """One row an answer under its session, and what was checked."""
    console = Console()
    for session, answers in groupby(found, lambda one: one.session):
        table = _table(session, ("when", "client", "asked", "round", "weights", "norm", "digest", "taken"))
        for one in answers:
            table.add_row(
                *(_minute(one.at), one.client, one.kind, _number(one.round)),
                *(f"{one.bytes:,}" if one.bytes else "", _norm(one.update_norm), one.weights[:_DIGITS]),
                f"no: {one.refusal}" if one.refusal else "yes",
            )
        console.print(table)
    taken = sum(not one.refusal for one in found)
    console.print(f"chain and signatures hold (key {public_key[:16]}); {taken} of {len(found)} answers were taken")


def _table(session: str, titles: Sequence[str]) -> Table:
    table = Table(title=f"session {session}", title_justify="left", box=None, pad_edge=False)
    for title in titles:
        table.add_column(title, justify="right" if title in _RIGHT else "left", no_wrap=title != "taken")
    return table


def _minute(at: str) -> str:
    """Day and minute of an ISO 8601 time.

    >>> _minute("2026-11-22T11:09:58+00:00")
    '11-22 11:09'
    """
    return f"{at[5:10]} {at[11:16]}"


def _number(value: int | None) -> str:
    return "" if value is None else str(value)


def _norm(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"

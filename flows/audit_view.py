"""What left a machine, and what a server took, as tables."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from zk0.federation.receipts import Audited
    from zk0.journal import Accepted


def show_audit(found: "Sequence[Audited]") -> None:
    """One row a message, and what was checked."""
    table = Table(title=f"{len(found)} messages left this machine", title_justify="left")
    for title in ("when", "session", "asked", "round"):
        table.add_column(title)
    for title in ("text, bytes", "tensors", "weights, bytes", "update norm"):
        table.add_column(title, justify="right")
    table.add_column("SHA-256 of weights")
    table.add_column("in the average")
    for one in found:
        table.add_row(*_cells(one))
    console = Console()
    console.print(table)
    updates = [one for one in found if one.update is not None]
    proved = sum(one.receipt is not None for one in updates)
    console.print(f"chain and signatures hold; {proved} of {len(updates)} updates are proved to be in their average")


def show_accepted(found: "Sequence[Accepted]", public_key: str) -> None:
    """One row an answer, and what was checked."""
    table = Table(title=f"{len(found)} answers of clients", title_justify="left")
    for title in ("when", "session", "client", "asked", "round"):
        table.add_column(title)
    for title in ("weights, bytes", "update norm"):
        table.add_column(title, justify="right")
    for title in ("SHA-256 of weights", "of its text", "taken"):
        table.add_column(title)
    for one in found:
        number = "" if one.round is None else str(one.round)
        norm = "" if one.update_norm is None else f"{one.update_norm:.4g}"
        table.add_row(
            *(one.at, one.session, one.client, one.kind, number, f"{one.bytes:,}", norm),
            *(one.weights[:12], one.text[:12], f"no: {one.refusal}" if one.refusal else "yes"),
        )
    console = Console()
    console.print(table)
    taken = sum(not one.refusal for one in found)
    console.print(f"chain and signatures hold (key {public_key[:16]}); {taken} of {len(found)} answers were taken")


def _cells(one: "Audited") -> list[str]:
    sent, update, weights = one.sent, one.update, one.sent.weights
    return [
        sent.at,
        sent.to,
        sent.kind,
        "" if sent.round is None else str(sent.round),
        f"{len(sent.text.encode()):,}",
        f"{weights.tensors:,}" if weights else "none",
        f"{weights.bytes:,}" if weights else "0",
        f"{update.metrics.update_norm:.4g}" if update else "",
        weights.digest[:12] if weights else "",
        "" if update is None else f"root {one.receipt.root[:12]}" if one.receipt else "no receipt yet",
    ]

"""Tables for `zk0bot client audit` and `zk0bot server audit`: sent messages, and received answers.

The tables fit a terminal; `--json` prints every field.
"""

import json
from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from zk0.records import clean_text

if TYPE_CHECKING:
    from zk0.audit.journal import OperatorAct, ReceivedAnswer, SentMessage
    from zk0.audit.journal_comparison import JournalComparison
    from zk0.federation.protocol.heads_audit import SessionHeads
    from zk0.federation.protocol.receipts import AuditedMessage

_RIGHT_ALIGNED = ("round", "text", "weights", "norm")
_DIGITS = 8
_SHOWN = 5
_ASKED_TRAINING = ("local_steps", "local_epochs", "batch_size", "betas", "eps", "grad_clip_norm", "scope", "personal")


def print_sent_messages(found: "Sequence[AuditedMessage]") -> None:
    """Print one table per session with one row per message, and a summary of what was verified."""
    console = Console()
    for session, group in groupby(found, lambda one: one.sent.to):
        messages = list(group)
        table = _table(session, ("time", "request", "round", "text", "weights", "norm", "digest", "receipt"))
        for one in messages:
            sent, update, weights = one.sent, one.update, one.sent.weights
            receipt = "" if update is None else f"root {one.receipt.root[:_DIGITS]}" if one.receipt else "none"
            _add_row(
                table,
                *(_day_and_minute(sent.at), sent.kind, _number(sent.round), f"{len(sent.text.encode()):,}"),
                *((f"{weights.bytes:,}", _norm(update.metrics.update_norm)) if weights and update else ("", "")),
                *(weights.digest[:_DIGITS] if weights else "", receipt),
            )
        console.print(table)
        for line in asked_lines([one.sent for one in messages]):
            console.print(escape(clean_text(line)))
    updates = [one for one in found if one.update is not None]
    listed, signed = sum(one.receipt is not None for one in updates), sum(one.root_signed for one in updates)
    console.print(f"{len(found)} messages were sent from this machine (text and weights in bytes)")
    console.print(
        f"hash chain and signatures of the journal are valid; the server lists {listed} of {len(updates)} updates, "
        f"{signed} of them under a root that it signed; whether it averaged them is not shown"
    )


def print_session_heads(found: "Sequence[SessionHeads]", key: str) -> None:
    """Print what the ledger heads of each session show."""
    console = Console()
    console.print(f"heads of the server's ledgers, signed by its key {key[:16]}")
    for one in found:
        lines = f"{one.heads} heads, ledger of {one.rounds} lines, {one.without_head} of {one.requests} without a head"
        state = one.problem or ("they contradict each other nowhere" if one.heads else "nothing to compare")
        if one.other_weights:
            state += f"; {one.other_weights} answered requests had weights that are not those of their round"
        console.print(escape(clean_text(f"  {one.session}: {lines}; {state}")))


def asked_lines(messages: "Sequence[SentMessage]") -> list[str]:
    """Return what the server asked: a line for each different request to join, train or evaluate, and the refusals."""
    rounds_by_request: dict[str, dict[int, None]] = {}
    refusals: dict[str, None] = {}
    for sent in messages:
        if sent.asked:
            rounds = rounds_by_request.setdefault(f"asked to {sent.kind}: {_asked_text(sent.asked)}", {})
            rounds |= {} if sent.round is None else {sent.round: None}
        if refusal := json.loads(sent.text).get("refusal"):
            refusals[f"refused {sent.kind}: {refusal}"] = None
    asked = (text + (f" (rounds {', '.join(map(str, r))})" if r else "") for text, r in rounds_by_request.items())
    return [*asked, *refusals]


def _asked_text(asked: str) -> str:
    """Return the settings of a request that decide what its answer shows of the data."""
    try:
        plan = json.loads(asked)
        training, terms = plan.get("training", {}), plan.get("terms", plan)
        shown = {
            "policy": plan.get("recipe", {}).get("path"),
            "holdout_episodes": terms.get("data", {}).get("holdout_episodes"),
            **{key: plan.get(key) for key in ("lr", "mu", "use_control_variates", "every_frames", "times")},
            **{key: training.get(key) or None for key in _ASKED_TRAINING},
            "statistics": plan.get("statistics"),
            "in a secure sum, neighbors": _neighbors_text(plan),
        }
    except (ValueError, AttributeError):
        return "something that is no plan"
    return ", ".join(f"{key} {value}" for key, value in shown.items() if value not in (None, False))


def _neighbors_text(plan: dict[str, Any]) -> int | str | None:
    """Return with how many clients an update was to be masked; None for an update by itself."""
    secure = plan.get("secure")
    return (secure.get("neighbors") or "all") if secure else None


def print_operator_acts(found: "Sequence[OperatorAct]") -> None:
    """Print one row for each thing that the operator of a server did."""
    table = Table(title="acts of the operator", title_justify="left", box=None, pad_edge=False)
    for title in ("time", "user", "act", "detail"):
        table.add_column(title, no_wrap=title != "detail", overflow="fold")
    for one in found:
        _add_row(table, _day_and_minute(one.at), one.user, one.act, one.detail)
    Console().print(table)


def print_received_answers(found: "Sequence[ReceivedAnswer]", public_key: str) -> None:
    """Print one table per session with one row per answer, and a summary of what was verified."""
    console = Console()
    for session, answers in groupby(found, lambda one: one.session):
        table = _table(session, ("time", "client", "request", "round", "weights", "norm", "digest", "accepted"))
        for one in answers:
            _add_row(
                table,
                *(_day_and_minute(one.at), one.client, one.kind, _number(one.round)),
                *(f"{one.bytes:,}" if one.bytes else "", _norm(one.update_norm), one.weights[:_DIGITS]),
                f"no: {one.refusal}" if one.refusal else "yes",
            )
        console.print(table)
    accepted = sum(not one.refusal for one in found)
    console.print(
        f"hash chain and signatures are valid (key {public_key[:16]}); {accepted} of {len(found)} answers were accepted"
    )


def print_client_journals(found: "Sequence[ReceivedAnswer]") -> None:
    """Print whose journal lacks lines that it had, by the heads that came with the answers."""
    from zk0.federation.protocol.shown_journals import client_heads, client_journal_problems

    console, problems = Console(), client_journal_problems(found)
    for client, heads in client_heads(found).items():
        state = f"not the one that it was: {problems[client]}" if client in problems else "none contradicts"
        console.print(escape(clean_text(f"journal of {client}: {len(heads)} heads came with its answers; {state}")))


def raise_for_client_journals(found: "Sequence[ReceivedAnswer]") -> None:
    """Raise where heads show that clients' journals lack lines, or are missing.

    Raises:
        LedgerError: names the clients.
    """
    from zk0.errors import LedgerError
    from zk0.federation.protocol.shown_journals import client_journal_problems

    if problems := client_journal_problems(found):
        listed = clean_text("; ".join(f"{client}: {problem}" for client, problem in list(problems.items())[:_SHOWN]))
        raise LedgerError(f"journals of clients are not the ones that they were: {listed}")


def print_journal_comparison(found: "JournalComparison") -> None:
    """Print what a client's journal and its server's have in common, and what did not arrive or was removed."""
    console, missing = Console(), found.missing_at_server
    console.print(escape(f"{found.client}: {found.both} answers are in both journals"))
    if missing:
        console.print(
            escape(f"{len(missing)} answers that {found.client} sent are not in the server's journal: ")
            + "they did not arrive, or lines were removed there"
        )
    for one in missing[:_SHOWN]:
        console.print(escape(clean_text(f"  {one}")))
    raise_for_missing(found)


def raise_for_missing(found: "JournalComparison") -> None:
    """Raise where the client's journal lacks answers that its server has received.

    Raises:
        LedgerError: names the first ones.
    """
    from zk0.errors import LedgerError

    if missing := found.missing_at_client:
        count = "1 answer" if len(missing) == 1 else f"{len(missing)} answers"
        verb = "is" if len(missing) == 1 else "are"
        listed = clean_text("; ".join(missing[:_SHOWN]))
        raise LedgerError(
            f"{count} that the server received from {found.client} {verb} not in its journal, "
            f"from which lines were removed: {listed}"
        )


def _table(session: str, titles: Sequence[str]) -> Table:
    table = Table(title=f"session {escape(clean_text(session))}", title_justify="left", box=None, pad_edge=False)
    for title in titles:
        right = title in _RIGHT_ALIGNED
        table.add_column(title, justify="right" if right else "left", no_wrap=title != "accepted")
    return table


def _add_row(table: Table, *cells: str) -> None:
    """Add a row of plain text: what came from another machine is no markup, and has no control characters."""
    table.add_row(*(escape(clean_text(cell)) for cell in cells))


def _day_and_minute(at: str) -> str:
    """Return day and minute of an ISO 8601 time.

    >>> _day_and_minute("2026-11-22T11:09:58+00:00")
    '11-22 11:09'
    """
    return f"{at[5:10]} {at[11:16]}"


def _number(value: int | None) -> str:
    return "" if value is None else str(value)


def _norm(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"

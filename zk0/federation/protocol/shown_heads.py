"""The ledger heads that a server shows to a node with each request, and the node's check.

The node knows the server's ledger key from its enrolment kit. It stores each head that it is shown, and refuses
requests whose heads are not signed, contradict an earlier one, or do not fit the plan (`zk0.audit.ledger_heads`). It
also refuses requests without a head, once the session's ledger has a line: to train, and to evaluate or report on a
model that a round has made.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from zk0.audit.ledger_heads import HeadStore, LedgerHead, SignedHead, contradiction
from zk0.errors import FederationError
from zk0.settings.plans import ClientPlan, JoiningReportPlan, RoundPlan, SessionTerms

HEADS = "heads"
"""Key in a request: signed heads of the session's ledger as JSON, the newest one last."""
LEDGER_KEY = "ledger_key"
"""Key in a node's configuration: the server's public key for heads, 64 hex digits."""
_MAX_TEXT = 50_000_000
SESSION_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,199}")
"""Names of sessions that can be names of files."""
_PARSER = TypeAdapter(tuple[SignedHead, ...])


def head_store(scratch: Path) -> HeadStore:
    """The heads that a client was shown."""
    return HeadStore(scratch / "heads")


def check_heads(
    request: Mapping[str, Any],
    config: Mapping[str, Any],
    terms: SessionTerms,
    plan: ClientPlan | None = None,
    most: int = 1,
) -> None:
    """Store the heads in a request, and raise where they show that the server's ledger is not one history.

    Args:
        request: of the server.
        config: of this node; without a ledger key nothing is checked: the client can read the ledger itself.
        terms: of the session.
        plan: in the request, whose weights must be those of a head.
        most: heads that such a request may have; a node stores all.

    Raises:
        FederationError: a head is missing, is not signed by the server's ledger key, is of another session, contradicts
            an earlier one, or does not fit the plan.
    """
    if not (key := str(config.get(LEDGER_KEY, ""))):
        return
    heads, session = parse_heads(request), terms.session
    if not SESSION_NAME.fullmatch(session):
        raise FederationError(f"{session[:40]!r} is not a valid name of a session")
    if any(one.head.session != session or not one.is_signed_by(key) for one in heads):
        raise FederationError(
            f"the server shows a ledger head that is not signed for session {session} by the key {key[:16]} of the kit"
        )
    if len(heads) > most:
        raise FederationError(f"the server shows {len(heads)} heads of its ledger with this request, expected {most}")
    store = head_store(Path(config["scratch"]))
    known = store.read(session)
    if not heads and (known or _needs_head(plan)):
        raise FederationError("the server shows no head of its ledger with this request; expected a signed one")
    store.add(session, heads)
    if problem := _problem(known, heads, plan):
        raise FederationError(f"the server's ledger is not the one that it showed before: {problem}")


def _needs_head(plan: ClientPlan | None) -> bool:
    """Return whether the ledger has a line when a plan is sent: that of round 0 comes after its evaluation."""
    return isinstance(plan, RoundPlan | JoiningReportPlan) or (plan is not None and plan.round > 0)


def parse_heads(request: Mapping[str, Any]) -> tuple[SignedHead, ...]:
    """Return the heads in a request; none where it has none.

    Raises:
        FederationError: they cannot be parsed.
    """
    text = str(request.get(HEADS, "[]"))
    try:
        if len(text) > _MAX_TEXT:
            raise ValueError(f"{len(text)} characters, at most {_MAX_TEXT}")
        return _PARSER.validate_json(text)
    except (ValidationError, ValueError) as e:
        raise FederationError(f"the server shows no valid heads of its ledger ({type(e).__name__})") from e


def _problem(known: Sequence[SignedHead], heads: Sequence[SignedHead], plan: ClientPlan | None) -> str:
    if found := contradiction([*known, *heads]):
        return found
    if not heads:
        return ""
    newest, longest = heads[-1].head, max((one.head.rounds for one in known), default=0)
    may_be_older = isinstance(plan, RoundPlan) and plan.buffered
    if newest.rounds < longest and not may_be_older:
        return f"it has {newest.rounds} lines, and had {longest}"
    return "" if plan is None else _plan_problem([*known, *heads], newest, plan)


def _plan_problem(heads: Sequence[SignedHead], newest: LedgerHead, plan: ClientPlan) -> str:
    """Return why a plan does not fit the heads; a round's plan comes with the line of the round before.

    Evaluated weights may be those of a round without a line yet; the node's audit compares them with its later head.
    """
    starts_round = isinstance(plan, RoundPlan)
    if newest.rounds < plan.round or (starts_round and newest.rounds > plan.round):
        return f"it has {newest.rounds} lines, and the plan is of round {plan.round}"
    lines = plan.round if starts_round else plan.round + 1
    for head in (one.head for one in heads if one.head.rounds == lines):
        if head.weights != plan.global_digest:
            return f"its weights of {lines} lines are {head.weights[:12]}, and the plan has {plan.global_digest[:12]}"
    return ""


def newest_head_digest(request: Mapping[str, Any]) -> str:
    """Return the digest of the newest head in a request; empty where it has none that can be parsed."""
    try:
        heads = parse_heads(request)
    except FederationError:
        return ""
    return heads[-1].head.digest() if heads else ""

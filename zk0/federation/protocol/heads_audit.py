"""A node's audit of the ledger heads that its server has shown, and their comparison with other nodes and ledgers."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from zk0.audit.card_root import CardRoot
from zk0.audit.journal import SentJournal, SentMessage
from zk0.audit.ledger_heads import LedgerHead, SignedHead, contradiction, ledger_heads, read_heads
from zk0.errors import FederationError
from zk0.federation.protocol.exchange import FEATURES, SECURE_CONSENT, SECURE_MASK, SECURE_REVEAL, SECURE_SHARES
from zk0.federation.protocol.sent_log import SENT_JOURNAL
from zk0.federation.protocol.shown_heads import SESSION_NAME, head_store
from zk0.records import Record

_BEFORE_ROUND_0 = ("join", FEATURES)
"""Kinds of requests that may come before the ledger has a line, as the evaluation of round 0 does."""

_FROM_THE_ROUND_BEFORE = ("train", SECURE_SHARES, SECURE_MASK, SECURE_CONSENT, SECURE_REVEAL)
"""Kinds of requests whose plan has the weights from which a round starts."""


class SessionHeads(Record):
    """What an audit found about the heads of one session."""

    session: str
    heads: int
    rounds: int
    """Length of the ledger in the newest head."""
    requests: int
    """Requests of this session that the node has answered."""
    without_head: int
    """Of these, requests to train, evaluate or report that came without a head."""
    other_weights: int = 0
    """Answered requests whose weights are not those of their round in the ledger: a model that the server evaluated
    before it repeated the round, or one that it chose."""
    problem: str = ""
    """What shows that the server's ledger is not one history; empty: nothing does."""


def audited_heads(scratch: Path, key: str) -> tuple[SessionHeads, ...]:
    """Check all heads that a client was shown; one result for each session that it has answered.

    Args:
        scratch: folder of the client.
        key: the server's ledger key.

    Raises:
        LedgerError: the journal or a file of heads was changed.
    """
    store, by_session = head_store(scratch), dict[str, list[SentMessage]]()
    for sent in SentJournal(scratch / SENT_JOURNAL).read():
        by_session.setdefault(sent.to, []).append(sent)
    found = []
    for session, messages in by_session.items():
        heads = store.read(session) if session in store.sessions() else ()
        found.append(
            SessionHeads(
                session=session,
                heads=len(heads),
                rounds=max((one.head.rounds for one in heads), default=0),
                requests=len(messages),
                without_head=sum(
                    not sent.ledger_head and sent.kind not in _BEFORE_ROUND_0 and sent.round != 0 for sent in messages
                ),
                other_weights=_other_weights(messages, {one.head.rounds - 1: one.head.weights for one in heads}),
                problem=_problem(session, heads, messages, key),
            )
        )
    return tuple(found)


def _problem(session: str, heads: Sequence[SignedHead], messages: Sequence[SentMessage], key: str) -> str:
    """Return what shows that the server's ledger is not one history; empty where nothing does."""
    if bad := [one for one in heads if one.head.session != session or not one.is_signed_by(key)]:
        return f"{len(bad)} heads are not signed by the key {key[:16]}"
    if missing := {sent.ledger_head for sent in messages if sent.ledger_head} - {one.head.digest() for one in heads}:
        return f"{len(missing)} heads in the journal are missing in the node's folder"
    return contradiction(heads) or ""


def _other_weights(messages: Sequence[SentMessage], weights: Mapping[int, str]) -> int:
    """Return how many answered requests had other weights than the head of their round, which may have come later."""
    count = 0
    for sent in messages:
        if sent.round is None or "refusal" in json.loads(sent.text):
            continue
        expected = weights.get(sent.round - 1 if sent.kind in _FROM_THE_ROUND_BEFORE else sent.round)
        found = str(sent.asked_values().get("global_digest", ""))
        count += bool(found) and expected not in (None, found)
    return count


def compare_with_node(scratch: Path, key: str, file: Path) -> str:
    """Compare a session's heads with those that another node was shown, and return what was found.

    Args:
        scratch: folder of this client.
        key: the server's ledger key.
        file: of the other node: `scratch/heads/SESSION.jsonl`.

    Raises:
        FederationError: the server has shown two histories, or the file has heads that it did not sign.
    """
    others = read_heads(file)
    sessions = {one.head.session for one in others}
    if len(sessions) != 1 or not all(one.is_signed_by(key) for one in others):
        raise FederationError(f"{file}: expected heads of one session, all signed by the key {key[:16]}")
    (session,) = sessions
    own = head_store(scratch).read(session) if SESSION_NAME.fullmatch(session) else ()
    if found := contradiction([*own, *others]):
        raise FederationError(f"the server has shown two ledgers of session {session}: {found}; keep both files")
    both = len({one.head.rounds for one in own} & {one.head.rounds for one in others})
    return f"session {session}: {both} heads are those of {file}, none contradicts"


def compare_with_ledger(scratch: Path, file: Path) -> str:
    """Compare the heads that a client was shown with a ledger or a model card, and return what was found.

    Args:
        scratch: folder of the client.
        file: a `ledger.jsonl`, or the model card of a policy (`README.md`), which states the root of its ledger.

    Raises:
        FederationError: the ledger is not one that the server showed, or lacks rounds that it showed.
        LedgerError: the file is neither a valid ledger nor a model card.
    """
    store = head_store(scratch)
    shown = {name: [one.head for one in store.read(name)] for name in store.sessions()}
    return _compare_with_card(shown, file) if file.suffix == ".md" else _compare_with_lines(shown, file)


def _compare_with_card(shown: Mapping[str, Sequence[LedgerHead]], card: Path) -> str:
    stated = CardRoot.read(card)
    for session, heads in shown.items():
        if any((head.rounds, head.root) == (stated.round + 1, stated.root) for head in heads):
            return f"{card}: its ledger is that of session {session} up to round {stated.round}"
    raise FederationError(
        f"{card}: states ledger root {stated.root[:12]} of round {stated.round}, and the server has shown none with it "
        f"(sessions {', '.join(shown) or 'none'})"
    )


def _compare_with_lines(shown: Mapping[str, Sequence[LedgerHead]], ledger: Path) -> str:
    for session, heads in shown.items():
        lines = ledger_heads(ledger, session)
        if not any(head in lines for head in heads):
            continue  # of another session, or rewritten from its beginning
        for head in heads:
            if head.rounds > len(lines):
                raise FederationError(f"{ledger}: has {len(lines)} rounds, the server showed one of {head.rounds}")
            if lines[head.rounds - 1] != head:
                raise FederationError(
                    f"{ledger}: its first {head.rounds} lines are not those of the head that was shown"
                )
        return f"{ledger}: has all {len(heads)} heads that the server showed of session {session}"
    raise FederationError(
        f"{ledger}: none of its lines is that of a head which the server has shown ({', '.join(shown) or 'no session'})"
    )

"""The heads of their journals that a server and its nodes send each other with each request and each answer.

Each side writes the other's head into its own journal (`zk0.audit.journal_heads`). So lines that one side removes from
the end of its journal are found by the other side, at once or in its audit.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

from pydantic import ValidationError

from zk0.audit.journal import OperatorJournal, ReceivedAnswer, ReceivedJournal, SentJournal, SentMessage
from zk0.audit.journal_heads import JournalHead, journal_problem, missing_heads
from zk0.errors import LedgerError

JOURNAL = "journal"
"""Key in a request and in an answer: the head of the sender's journal as JSON."""
_MAX_TEXT = 1000
_ANSWER = 1
"""Lines by which a node's journal grows from answer to answer: the answer, which is journaled before it is sent."""


def parse_journal_head(text: str) -> JournalHead | None:
    """Return the head in a message; None where it has none that is signed."""
    try:
        head = JournalHead.model_validate_json(text) if 0 < len(text) <= _MAX_TEXT else None
    except ValidationError:
        return None
    return head if head is not None and head.is_signed() else None


def server_journal_problem(messages: Sequence[SentMessage]) -> str:
    """Return what shows that lines were removed from the server's journal; empty where nothing does.

    Requests of two sessions may arrive in another order than they were made in, those of one session may not, but for
    training in buffered rounds, which goes on while the server makes other requests.

    Args:
        messages: a node's journal, oldest first.
    """
    by_session: dict[str, list[JournalHead]] = {}
    for sent in messages:
        if sent.server_journal is not None:
            _add(by_session.setdefault(sent.to, []), sent.server_journal, in_order=not asks_in_buffered_round(sent))
    every = sorted((head for heads in by_session.values() for head in heads), key=lambda head: head.lines)
    problem = next((found for heads in (*by_session.values(), every) if (found := journal_problem(heads))), "")
    return problem or _headless_problem([sent.server_journal for sent in messages], "request")


def client_journal_problems(received: Sequence[ReceivedAnswer]) -> dict[str, str]:
    """Return what shows that lines were removed from clients' journals, by client; others are left out.

    Args:
        received: the server's journal, oldest first.
    """
    problems = {}
    for client, heads in client_heads(received).items():
        shown = [one.client_journal for one in received if one.client == client and (one.text or one.client_journal)]
        problems[client] = client_journal_problem(heads) or _headless_problem(shown, "answer")
    return {client: problem for client, problem in problems.items() if problem}


def _headless_problem(shown: Sequence[JournalHead | None], what: str) -> str:
    """Return which messages came without a valid head after one that had one; empty where all had.

    An answer by which a node refuses a request needs none: it may not have read the request, or its disk may be full.

    Args:
        shown: the head in each message.
        what: the message is.
    """
    first = next((place for place, head in enumerate(shown) if head is not None), len(shown))
    without = sum(head is None for head in shown[first:])
    plural = "" if without == 1 else "s"
    return f"{without} {what}{plural} came without a valid head of it, after one with a head" if without else ""


def client_journal_problem(heads: Sequence[JournalHead]) -> str:
    """Return what shows, by the heads in its answers, that lines were removed from a client's journal."""
    return journal_problem(heads, _ANSWER)


def client_heads(received: Iterable[ReceivedAnswer]) -> dict[str, list[JournalHead]]:
    """Return the heads of each client's journal in the order in which they were sent."""
    found: dict[str, list[JournalHead]] = {}
    for one in received:
        if one.client_journal is not None:
            _add(found.setdefault(one.client, []), one.client_journal, one.in_order)
    return found


def asks_in_buffered_round(sent: SentMessage) -> bool:
    """Return whether a request was one to train in a buffered round."""
    return sent.asked_values().get("buffered") is True


def _add(heads: list[JournalHead], head: JournalHead, in_order: bool) -> None:
    """Append a head; one that others may have overtaken gets its place before those with more lines."""
    place = len(heads)
    while not in_order and place and heads[place - 1].key == head.key and heads[place - 1].lines > head.lines:
        place -= 1
    heads.insert(place, head)


def check_journal_file(journal: SentJournal | ReceivedJournal | OperatorJournal, heads: Iterable[JournalHead]) -> None:
    """Raise unless a journal has all lines whose heads its owner has sent or recorded.

    Raises:
        LedgerError: lines were removed or changed, or the file is no valid journal.
    """
    journal.read()
    public = journal.public_key.read_text(encoding="ascii").strip() if journal.public_key.is_file() else ""
    if problem := missing_heads(journal.path, public, heads):
        raise LedgerError(f"{journal.path}: {problem}")


def check_client_journal(journal: SentJournal, heads: Sequence[JournalHead]) -> None:
    """Raise unless a client's journal has grown from answer to answer, and has all lines whose heads it has sent.

    Raises:
        LedgerError: lines were removed or changed, or the file is no valid journal.
    """
    check_journal_file(journal, heads)
    if problem := client_journal_problem(heads):
        raise LedgerError(f"{journal.path}: not the journal that it was: {problem}")


def shows_no_more_heads(scratch_journal: Path, head: JournalHead | None) -> bool:
    """Return whether a request has no head of the server's journal, and the last one before it had one."""
    if head is not None:
        return False
    before = next(SentJournal(scratch_journal).newest_first(), None)
    return before is not None and before.server_journal is not None


def last_server_head(scratch_journal: Path, session: str) -> JournalHead | None:
    """Return the last head of the server's journal that came with a request of a session; None: none came."""
    for sent in SentJournal(scratch_journal).newest_first():
        if sent.to == session and sent.server_journal is not None:
            return sent.server_journal
    return None

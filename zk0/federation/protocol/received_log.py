"""The server's record of every answer that it received, signed and chained (`zk0.audit.journal`)."""

import hashlib
import json
from datetime import datetime
from pathlib import Path
from typing import Any

from loguru import logger

from zk0.audit.journal import OperatorJournal, ReceivedAnswer, ReceivedJournal
from zk0.audit.journal_heads import JournalHead
from zk0.federation.flower.flower_message import WEIGHTS_PATH
from zk0.federation.protocol.exchange import Reply
from zk0.federation.protocol.shown_journals import client_journal_problem, parse_journal_head
from zk0.records import Update

RECEIVED_JOURNAL = "accepted.jsonl"
"""Name of the journal in a server's folder."""


class ReceivedLog:
    """Records the answers of one session.

    Args:
        file: the server's journal, which all its sessions share; None: nothing is recorded.
        session: name of the session.
        operations: the journal of the server's operator, whose head is recorded with the answers; None: none is.
    """

    def __init__(self, file: Path | None, session: str, operations: OperatorJournal | None = None) -> None:
        self._journal = ReceivedJournal(file) if file is not None else None
        self._session = session
        self._client_heads: dict[str, JournalHead] | None = None
        self._head: tuple[int, str] = (-1, "")
        self._operations, self._operations_size = operations, -1

    def head(self) -> str:
        """Return the signed head of the journal as JSON, as each request to a node has it; empty without a journal."""
        if self._journal is None:
            return ""
        size = self._journal.path.stat().st_size if self._journal.path.exists() else 0
        if size != self._head[0]:
            self._head = size, self._journal.head().model_dump_json()
        return self._head[1]

    def record(
        self,
        reply: Reply,
        request: tuple[str, int | None],
        client: str = "",
        update: Update | None = None,
        refusal: str = "",
        in_order: bool = True,
    ) -> None:
        """Append an answer to the journal.

        Args:
            reply: the answer.
            request: kind and round of the request that it answers.
            client: the client that answered, where `reply.sender` is not its name.
            update: the update in the answer, where it was accepted.
            refusal: the reason why it was refused.
            in_order: the client has sent no answer later that was received before this one.
        """
        if self._journal is None:
            return
        client = client or reply.sender
        self._journal.append(
            ReceivedAnswer(
                at=datetime.now().astimezone().isoformat(timespec="seconds"),
                session=self._session,
                client=client,
                kind=request[0],
                round=request[1],
                refusal=refusal,
                text="" if reply.content is None else text_digest(dict(reply.content["answer"])),
                weights=update.digest if update else "",
                bytes=update.bytes if update else 0,
                update_norm=update.metrics.update_norm if update else None,
                examples=update.examples if update else None,
                client_journal=self._client_journal(client, reply, in_order),
                in_order=in_order,
                operations=self._new_operations_head(),
            )
        )

    def _new_operations_head(self) -> JournalHead | None:
        """Return the head of the operator's journal if it has changed since the last answer of this session."""
        if self._operations is None or not self._operations.path.exists():
            return None
        size = self._operations.path.stat().st_size
        if size == self._operations_size:
            return None
        self._operations_size = size
        return self._operations.head()

    def _client_journal(self, client: str, reply: Reply, in_order: bool) -> JournalHead | None:
        """Return the head of a client's journal; log where its end was removed, and where the head is missing."""
        head = parse_journal_head(reply.journal)
        if head is None:
            if reply.journal or (reply.content is not None and client in self._known_heads()):
                logger.warning("{}: its answer has no valid head of its journal", client)
            return None
        known = self._known_heads()
        if not in_order and client in known:  # the audit finds its place
            return head
        if client in known and (problem := client_journal_problem([known[client], head])):
            logger.warning("the journal of {} is not the one that it was: {}", client, problem)
        known[client] = head
        return head

    def _known_heads(self) -> dict[str, JournalHead]:
        """Return the last head of each client's journal, also of earlier sessions."""
        if self._client_heads is None:
            self._client_heads = {}
            for one in self._journal.newest_first() if self._journal is not None else ():
                if one.client_journal is not None and one.in_order:
                    self._client_heads.setdefault(one.client, one.client_journal)
        return self._client_heads


def text_digest(answer: dict[str, Any]) -> str:
    """Return the SHA-256 of an answer without its weights, in the form in which its client has recorded it."""
    text = {key: value for key, value in answer.items() if key != WEIGHTS_PATH}
    return hashlib.sha256(json.dumps(text, ensure_ascii=False).encode()).hexdigest()

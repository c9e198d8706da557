"""The server's record of every answer that it received, signed and chained (`zk0.audit.journal`)."""

import hashlib
import json
from datetime import datetime
from pathlib import Path
from typing import Any

from zk0.audit.journal import ReceivedAnswer, ReceivedJournal
from zk0.federation.flower.flower_message import WEIGHTS_PATH
from zk0.federation.protocol.exchange import Reply
from zk0.records import Update

RECEIVED_JOURNAL = "accepted.jsonl"
"""Name of the journal in a server's folder."""


class ReceivedLog:
    """Records the answers of one session.

    Args:
        file: the server's journal, which all its sessions share; None: nothing is recorded.
        session: name of the session.
    """

    def __init__(self, file: Path | None, session: str) -> None:
        self._journal = ReceivedJournal(file) if file is not None else None
        self._session = session

    def record(
        self,
        reply: Reply,
        request: tuple[str, int | None],
        client: str = "",
        update: Update | None = None,
        refusal: str = "",
    ) -> None:
        """Append an answer to the journal.

        Args:
            reply: the answer.
            request: kind and round of the request that it answers.
            client: the client that answered, where `reply.sender` is not its name.
            update: the update in the answer, where it was accepted.
            refusal: the reason why it was refused.
        """
        if self._journal is None:
            return
        self._journal.append(
            ReceivedAnswer(
                at=datetime.now().astimezone().isoformat(timespec="seconds"),
                session=self._session,
                client=client or reply.sender,
                kind=request[0],
                round=request[1],
                refusal=refusal,
                text="" if reply.content is None else text_digest(dict(reply.content["answer"])),
                weights=update.digest if update else "",
                bytes=update.bytes if update else 0,
                update_norm=update.metrics.update_norm if update else None,
                examples=update.examples if update else None,
            )
        )


def text_digest(answer: dict[str, Any]) -> str:
    """Return the SHA-256 of an answer without its weights, in the form in which its client has recorded it."""
    text = {key: value for key, value in answer.items() if key != WEIGHTS_PATH}
    return hashlib.sha256(json.dumps(text, ensure_ascii=False).encode()).hexdigest()

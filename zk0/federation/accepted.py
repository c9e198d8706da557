"""What the server was answered is written down as it comes, signed and chained (`zk0.journal`)."""

import hashlib
import json
from datetime import datetime
from pathlib import Path
from typing import Any

from zk0.federation.exchange import Reply
from zk0.federation.sent import WEIGHTS_PATH
from zk0.journal import Accepted, AcceptedJournal
from zk0.records import Update

ACCEPTED = "accepted.jsonl"
"""In a server's folder."""


class AcceptedLog:
    """The record of one session.

    Args:
        file: the server's journal, which all its sessions share; None: nothing is written down.
        session: which one this is.
    """

    def __init__(self, file: Path | None, session: str) -> None:
        self._journal = AcceptedJournal(file) if file is not None else None
        self._session = session

    def note(
        self, reply: Reply, asked: tuple[str, int | None], client: str = "", taken: Update | None = None, why: str = ""
    ) -> None:
        """Put an answer on the disk.

        Args:
            reply: it.
            asked: what, and of which round.
            client: whose answer it is, where the reply is not named after it.
            taken: the update in it, where that was accepted.
            why: it was refused.
        """
        if self._journal is None:
            return
        self._journal.append(
            Accepted(
                at=datetime.now().astimezone().isoformat(timespec="seconds"),
                session=self._session,
                client=client or reply.name,
                kind=asked[0],
                round=asked[1],
                refusal=why,
                text="" if reply.content is None else text_digest(dict(reply.content["answer"])),
                weights=taken.digest if taken else "",
                bytes=taken.bytes if taken else 0,
                update_norm=taken.metrics.update_norm if taken else None,
                examples=taken.examples if taken else None,
            )
        )


def text_digest(answer: dict[str, Any]) -> str:
    """SHA-256 of an answer as its client has written it down: all of it but its weights."""
    said = {key: value for key, value in answer.items() if key != WEIGHTS_PATH}
    return hashlib.sha256(json.dumps(said, ensure_ascii=False).encode()).hexdigest()

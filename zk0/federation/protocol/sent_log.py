"""A client's record of every answer, written on its machine before the answer is sent (`zk0.audit.journal`)."""

import hashlib
import json
from datetime import datetime
from pathlib import Path
from typing import Any

from flwr.app import ConfigRecord, Message, MessageType, RecordDict
from loguru import logger

from zk0.audit.journal import SentJournal, SentMessage, SentWeights
from zk0.audit.journal_heads import journal_problem
from zk0.federation.flower.flower_message import WEIGHTS_PATH
from zk0.federation.protocol.exchange import SECURE, SECURE_CONSENT
from zk0.federation.protocol.shown_heads import newest_head_digest
from zk0.federation.protocol.shown_journals import (
    JOURNAL,
    asks_in_buffered_round,
    last_server_head,
    parse_journal_head,
    shows_no_more_heads,
)
from zk0.federation.protocol.statistics_digest import requested_statistics_label
from zk0.records import Update, clean_text
from zk0.secure.messages import MaskedUpdate
from zk0.storage.redaction import last_component, public_values, without_folders
from zk0.weights.files import open_weights

REMOTE = "remote"
"""Key in a node's configuration: the server is on another machine."""
_MAX_NAME, _MAX_ASKED, _MAX_ROUND = 200, 20_000, 10**7
"""Of a request, in the journal."""
_MAX_PART, _MAX_LISTED = 130, 20
"""Characters of a text and entries of a list in it: a long one must not displace what else was asked."""
SENT_JOURNAL = "sent.jsonl"
"""Name of the journal in a client's scratch folder."""


def redacted_answer(content: RecordDict, dataset: str) -> RecordDict:
    """Return an answer in which datasets and files are named by their last component only, without their folders.

    `dataset` is the client's own; its folder is removed even where its name contains spaces.
    """
    answer: dict[str, Any] = dict(content["answer"])
    folder = dataset.partition(":")[2] if dataset.startswith("local:") else ""
    for key, value in answer.items():
        if key == WEIGHTS_PATH or not isinstance(value, str) or not value:
            continue
        if key == "refusal":
            answer[key] = without_folders(value.replace(folder, last_component(folder)) if folder else value)
        else:
            answer[key] = json.dumps(public_values(json.loads(value)), ensure_ascii=False)
    return RecordDict({"answer": ConfigRecord(answer)})


def with_journal_head(content: RecordDict, scratch: Path) -> RecordDict:
    """Return an answer with the head of the client's journal before it."""
    head = SentJournal(scratch / SENT_JOURNAL).head().model_dump_json()
    return RecordDict({"answer": ConfigRecord({**content["answer"], JOURNAL: head})})


def record_sent(message: Message, content: RecordDict, scratch: Path) -> None:
    """Append an answer to the client's journal: its whole text, and size and digest of its weights.

    Args:
        message: the request.
        content: the answer.
        scratch: the client's scratch folder.

    Raises:
        LedgerError, OSError: the answer could not be recorded, and so must not be sent.
    """
    answer: dict[str, Any] = dict(content["answer"])
    path = answer.pop(WEIGHTS_PATH, None)  # read by the engine on this machine, not sent
    request = message.content["config"]
    asked = str(request.get("plan", request.get("terms", "{}")))
    plan = _parsed_request(asked)
    message_type = message.metadata.message_type
    session = clean_text(str(_session_terms(plan).get("session", "unknown")), _MAX_NAME)
    sent = SentMessage(
        at=datetime.now().astimezone().isoformat(timespec="seconds"),
        to=session,
        kind={MessageType.QUERY: "join"}.get(message_type, message_type.rpartition(".")[2]),
        round=number if type(number := plan.get("round")) is int and 0 <= number < _MAX_ROUND else None,
        text=json.dumps(answer, ensure_ascii=False),
        weights=None if path is None else _sent_weights(Path(str(path)), answer),
        asked=_asked_text(plan | _agreed_sum(message_type, request), asked),
        asked_digest=hashlib.sha256(asked.encode()).hexdigest(),
        ledger_head=newest_head_digest(request),
        server_journal=parse_journal_head(str(request.get(JOURNAL, ""))),
    )
    _check_server_journal(sent, scratch / SENT_JOURNAL)
    SentJournal(scratch / SENT_JOURNAL).append(sent)


def _agreed_sum(message_type: str, request: ConfigRecord) -> dict[str, Any]:
    """Return the sum of updates that a client was asked to agree to, by `sum`; nothing for other requests."""
    if message_type.rpartition(".")[2] != SECURE_CONSENT:
        return {}
    return {"sum": _parsed_request(str(request.get(SECURE, "{}")))}


def _check_server_journal(sent: SentMessage, journal: Path) -> None:
    """Log where the head of the server's journal in a request shows that its end was removed, or is missing."""
    if shows_no_more_heads(journal, sent.server_journal):
        logger.error(
            "the request has no valid head of the server's journal, and the last one had; see zk0bot client audit"
        )
    head = None if asks_in_buffered_round(sent) else sent.server_journal
    last = last_server_head(journal, sent.to) if head else None
    if head and last and (problem := journal_problem([last, head])):
        logger.error("the server's journal is not the one that it was: {}; see zk0bot client audit", problem)


def _parsed_request(text: str) -> dict[str, Any]:
    """Return the request; one that is no JSON object, which the client has refused, counts as empty."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _asked_text(plan: dict[str, Any], text: str) -> str:
    """Return a request as the journal holds it, with a digest of the statistics instead of them.

    One that is nested too deep, which is no plan, is returned as it came.
    """
    try:
        named = {"statistics": requested_statistics_label(plan["statistics"])} if "statistics" in plan else {}
        shown = json.dumps(_shortened(plan | named))
    except RecursionError:
        shown = text
    return clean_text(shown, _MAX_ASKED)


def _shortened(value: Any) -> Any:
    """Return a JSON value in which long texts are cut, and of long lists the first entries and the number are left."""
    if isinstance(value, dict):
        return {key[:_MAX_PART]: _shortened(one) for key, one in value.items()}
    if isinstance(value, list):
        more = [f"{len(value) - _MAX_LISTED} more"] if len(value) > _MAX_LISTED else []
        return [*map(_shortened, value[:_MAX_LISTED]), *more]
    return value[:_MAX_PART] if isinstance(value, str) else value


def _session_terms(plan: dict[str, Any]) -> dict[str, Any]:
    terms = plan.get("terms", plan)
    return terms if isinstance(terms, dict) else {}


def _sent_weights(path: Path, answer: dict[str, Any]) -> SentWeights:
    size, digest = path.stat().st_size, ""
    if "masked" in answer:
        digest = MaskedUpdate.model_validate_json(str(answer["masked"])).digest
    else:
        update = Update.model_validate_json(str(answer["update"]))
        size, digest = update.bytes, update.digest
    with open_weights(path.with_suffix(".safetensors")) as file:  # a compressed file lies beside the original
        values = sum(spec.size for spec in file.specs.values())
        return SentWeights(tensors=len(file), values=values, bytes=size, digest=digest)

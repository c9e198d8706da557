"""What an answer says is written down on the client's machine before it leaves (`zk0.journal`)."""

import json
from datetime import datetime
from pathlib import Path
from typing import Any

from flwr.app import ConfigRecord, Message, MessageType, RecordDict

from zk0.journal import Journal, Sent, SentWeights
from zk0.public import last_component, public_values, without_folders
from zk0.records import Update
from zk0.weights import open_weights

WEIGHTS_PATH = "weights-path"
"""In a message's ConfigRecord: the file of weights that belongs to it; between machines its bytes travel instead."""
ELSEWHERE = "elsewhere"
"""In a client's configuration: whoever asks is on another machine."""
JOURNAL = "sent.jsonl"
"""In a client's scratch folder."""


def without_places(content: RecordDict, dataset: str) -> RecordDict:
    """An answer that names data sets and files by their last component only: where they lie is nobody's business.

    `dataset` is the client's own; its folder is found even where its name has spaces.
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


def note_sent(message: Message, content: RecordDict, scratch: Path) -> None:
    """Append the answer to the client's journal: all of its text, and what its weights are.

    Raises:
        LedgerError, OSError: it cannot be written down, and so must not leave.
    """
    answer: dict[str, Any] = dict(content["answer"])
    path = answer.pop(WEIGHTS_PATH, None)  # a name for the engine on this machine: it does not leave
    asked = message.content["config"]
    about = json.loads(str(asked.get("plan", asked.get("terms", "{}"))))
    kind = message.metadata.message_type
    sent = Sent(
        at=datetime.now().astimezone().isoformat(timespec="seconds"),
        to=str(about.get("terms", about).get("session", "unknown")),
        kind={MessageType.QUERY: "join"}.get(kind, kind.rpartition(".")[2]),
        round=about.get("round"),
        text=json.dumps(answer, ensure_ascii=False),
        weights=None if path is None else _weights(Path(str(path)), str(answer["update"])),
    )
    Journal(scratch / JOURNAL).append(sent)


def _weights(path: Path, update: str) -> SentWeights:
    said = Update.model_validate_json(update)
    with open_weights(path.with_suffix(".safetensors")) as file:  # what is packed lies beside it as it was
        values = sum(spec.size for spec in file.specs.values())
        return SentWeights(tensors=len(file), values=values, bytes=said.bytes, digest=said.digest)

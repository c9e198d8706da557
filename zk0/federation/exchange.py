"""Questions to many nodes and what comes back of them, over any engine."""

import time
from collections.abc import Generator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from flwr.app import Error, Message, RecordDict
from flwr.common.constant import ErrorCode

POLL_SECONDS = 0.02
_EXPIRED = (ErrorCode.MESSAGE_UNAVAILABLE, ErrorCode.REPLY_MESSAGE_UNAVAILABLE)
"""What Flower answers itself when a message's time is over."""

Question = tuple[int, RecordDict]
"""The node that is asked, and what."""


class Grid(Protocol):
    """What an engine offers; Flower's grids offer it too, but for `forget`."""

    def get_nodes(self) -> Sequence[Any]: ...
    def make_message(self, content: RecordDict, node: int, kind: str, ttl: float, group: str) -> Message: ...
    def push_messages(self, messages: Sequence[Message]) -> Sequence[str]: ...
    def pull_messages(self, ids: Sequence[str]) -> Sequence[Message]: ...
    def forget(self, ids: Sequence[str]) -> None: ...


class Reply(NamedTuple):
    """One reply: its content, or why there is none."""

    name: str
    content: RecordDict | None
    fault: str = ""
    extra: bool = False
    """Not the one that was waited for."""


def ask(
    grid: Grid, questions: Mapping[str, Question], kind: str, group: str, timeout_seconds: float
) -> Generator[Reply]:
    """What comes back, as it comes; each who was asked answers once, if only by saying nothing.

    Whatever comes besides (a second answer, or one to a question of another round) is a reply too, an `extra` one.
    """
    if not questions:
        return
    messages = [grid.make_message(content, node, kind, timeout_seconds, group) for node, content in questions.values()]
    asked = dict(zip(grid.push_messages(messages), questions, strict=True))
    waiting, nodes = dict(asked), {node: name for name, (node, _) in questions.items()}
    late = f"no answer within {timeout_seconds:g} s"
    deadline = time.monotonic() + timeout_seconds + 10 * POLL_SECONDS
    try:
        while waiting:
            found = grid.pull_messages(list(waiting))
            for message in found:
                question = message.metadata.reply_to_message_id
                if question in waiting:
                    yield _opened(waiting.pop(question), message, late)
                elif question in asked:
                    yield Reply(asked[question], None, "answered twice; the first answer counts", extra=True)
                else:
                    name = nodes.get(message.metadata.src_node_id, f"node {message.metadata.src_node_id}")
                    yield Reply(name, None, "answered a question of another round", extra=True)
            if not found:
                if time.monotonic() > deadline:  # only now: what arrived while others were checked counts
                    break
                time.sleep(POLL_SECONDS)
    finally:
        grid.forget(list(asked))
    for name in waiting.values():
        yield Reply(name, None, late)


def _opened(name: str, message: Message, late: str) -> Reply:
    if message.has_error():
        return Reply(name, None, late if message.error.code in _EXPIRED else _reason(message.error))
    if "answer" not in message.content:
        return Reply(name, None, "an empty answer")
    answer = message.content["answer"]
    if "refusal" in answer:
        return Reply(name, None, str(answer["refusal"]))
    return Reply(name, message.content)


def _reason(error: Error) -> str:
    return str(error.reason or f"its node reports error {error.code}").splitlines()[0]

"""Send one request to each of many nodes over any engine, and yield the replies as they arrive."""

import time
from collections.abc import Generator, Mapping, Sequence
from math import inf
from typing import Any, NamedTuple, Protocol

from flwr.app import ConfigRecord, Error, Message, RecordDict

from zk0.federation.flower.private_api import ErrorCode
from zk0.federation.protocol.answers import MAX_REASON, answer_problem, parse_steps
from zk0.federation.protocol.shown_journals import JOURNAL
from zk0.records import JoiningStep, clean_text

POLL_SECONDS = 0.02
ANSWERED_TWICE = "answered twice; the first answer counts"
OF_ANOTHER_ROUND = "answered a request of another round"
"""Why an answer to no open request does not count."""
_EXPIRED = (ErrorCode.MESSAGE_UNAVAILABLE, ErrorCode.REPLY_MESSAGE_UNAVAILABLE)
"""Error codes of the replies that Flower creates when a message's time to live is over."""

LOCAL_BASELINE = "local_baseline"
"""Action of the Flower message type `evaluate`: the client trains alone, for its joining report."""
JOINING_REPORT = "joining_report"
"""Action of the Flower message type `evaluate`: the client measures what joining brought it."""
FEATURES = "features"
"""Action of the Flower message type `query`: the client computes the features of its frames, before its first round."""
RECEIPTS = "receipts"
"""Action of the Flower message type `query`: the client checks and stores the receipts of its updates."""
SECURE_SHARES = "secure_shares"
"""Action of the Flower message type `query`: the client shares its secrets of a round with the clients of a roster."""
SECURE_MASK = "secure_mask"
"""Action of the Flower message type `query`: the client sends its masked update."""
SECURE_CONSENT = "secure_consent"
"""Action of the Flower message type `query`: the client agrees to a sum."""
SECURE_REVEAL = "secure_reveal"
"""Action of the Flower message type `query`: the client sends the shares that remove the masks from the sum."""
SECURE = "secure"
"""Key of what the server sends with the plan in secure aggregation (`zk0.secure.messages`)."""
ANSWER_BYTES = "answer-bytes"
"""Key of the largest size of the weights that answer a request with text only."""

_TURN = "turn"
"""Record of a request that lives longer than a client's own work may take; clients do not see it."""

Request = tuple[int, RecordDict]
"""Node id of the receiver, and the content."""


class Grid(Protocol):
    """Interface of an engine: that of Flower's Grid, with what zk0 needs besides."""

    limits_turns: bool
    """Whether it limits the time of each request itself, from the moment on at which a client begins with it."""

    def get_nodes(self) -> Sequence[Any]: ...
    def make_message(
        self, content: RecordDict, dst_node_id: int, message_type: str, ttl: float, group_id: str
    ) -> Message: ...
    def push_messages(self, messages: Sequence[Message]) -> Sequence[str]: ...
    def pull_messages(self, ids: Sequence[str]) -> Sequence[Message]: ...
    def discard(self, ids: Sequence[str]) -> None: ...


class Reply(NamedTuple):
    """The content of one reply, or why there is none."""

    sender: str
    """Name of the request that it answers: a client, or a node id while clients join."""
    content: RecordDict | None
    error: str = ""
    unexpected: bool = False
    """It answers no request that is still open."""
    invalid: bool = False
    """Its node sent what zk0 never sends."""
    steps: tuple[JoiningStep, ...] = ()
    """What a client that joins has done."""
    may_pass: bool = False
    """The client refuses for a reason that may pass, such as a Hub that does not respond."""
    journal: str = ""
    """Head of the node's journal as JSON (`zk0.federation.protocol.shown_journals`); empty: it came without one."""


def limit_turn(content: RecordDict, seconds: float) -> RecordDict:
    """Return the content of a request with the time limit of the client's own work."""
    return RecordDict({**content, _TURN: ConfigRecord({"seconds": float(seconds)})})


def take_turn_limit(message: Message) -> float:
    """Return the time limit of the client's own work, and remove it from a request; without one, its time to live."""
    limit, lifetime = message.content.pop(_TURN, None), float(message.metadata.ttl)
    seconds = limit.get("seconds") if isinstance(limit, ConfigRecord) else None
    return seconds if isinstance(seconds, float) and 0 < seconds <= lifetime else lifetime


def timeout_reason(seconds: float) -> str:
    """Return why a client without an answer has none."""
    return f"no answer within {seconds:g} s"


def longest_silence(grid: Grid, seconds: float) -> float:
    """Return for how long an answer is awaited: a little beyond its time, or for ever where the engine limits it."""
    return inf if grid.limits_turns else seconds + 10 * POLL_SECONDS


def exchange_messages(
    grid: Grid,
    requests: Mapping[str, Request],
    message_type: str,
    group_id: str,
    timeout_seconds: float,
    extend: bool = False,
) -> Generator[Reply]:
    """Send requests, and yield one reply for each as it arrives; a node that is silent gets a reply with an error.

    `timeout_seconds` count from the moment on at which the requests are sent, or, where clients share the processes of
    the engine, at which a client begins (`Grid.limits_turns`). With `extend` they count from the last answer: nodes may
    share a GPU, and then each of them waits for those before it.

    A second answer to a request and an answer to a request of another round are yielded too, as `unexpected` replies.
    """
    if not requests:
        return
    extend = extend and not grid.limits_turns
    lifetime = timeout_seconds * len(requests) if extend else timeout_seconds
    messages = [
        grid.make_message(
            limit_turn(content, timeout_seconds) if extend else content, node, message_type, lifetime, group_id
        )
        for node, content in requests.values()
    ]
    sent = dict(zip(grid.push_messages(messages), requests, strict=True))
    pending, names = dict(sent), {node: name for name, (node, _) in requests.items()}
    timeout, silence = timeout_reason(timeout_seconds), longest_silence(grid, timeout_seconds)
    deadline = time.monotonic() + silence
    try:
        while pending:
            found = grid.pull_messages(list(pending))
            for message in found:
                answered = message.metadata.reply_to_message_id
                if answered in pending:
                    deadline = time.monotonic() + silence if extend else deadline
                    yield parse_reply(pending.pop(answered), message, timeout)
                elif answered in sent:
                    yield Reply(sent[answered], None, ANSWERED_TWICE, unexpected=True)
                else:
                    name = names.get(message.metadata.src_node_id, f"node {message.metadata.src_node_id}")
                    yield Reply(name, None, OF_ANOTHER_ROUND, unexpected=True)
            if not found:
                if time.monotonic() > deadline:  # checked last: what arrived while replies were processed counts
                    break
                time.sleep(POLL_SECONDS)
    finally:
        grid.discard(list(sent))
    for name in pending.values():
        yield Reply(name, None, timeout)


def parse_reply(sender: str, message: Message, timeout: str) -> Reply:
    """Return what a message answers; `timeout` is the error of a request whose time to live is over."""
    if message.has_error():
        return Reply(sender, None, timeout if message.error.code in _EXPIRED else _error_text(message.error))
    if problem := answer_problem(message.content):
        return Reply(sender, None, problem, invalid=True)
    answer = message.content["answer"]
    journal = str(answer.get(JOURNAL, ""))
    if "refusal" in answer:
        reason = clean_text(str(answer["refusal"]), MAX_REASON) or "a refusal without a reason"
        may_pass = bool(answer.get("may_pass", False))
        return Reply(sender, None, reason, steps=parse_steps(message.content), may_pass=may_pass, journal=journal)
    return Reply(sender, message.content, steps=parse_steps(message.content), journal=journal)


def _error_text(error: Error) -> str:
    return clean_text(error.reason or "", MAX_REASON) or f"its node reports error {error.code}"

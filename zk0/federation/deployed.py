"""The deployment engine, seen from the session: questions to clients on other machines, over Flower's SuperLink.

The session's own process is the ServerApp: it starts a run for each question to all (joining, a round), takes the
run's task and speaks with the Runtime API of the SuperLink on this machine. So nothing is started for a round, a round
shows up as a run in `flwr list`, and whatever ends it (`flwr stop`, a lost SuperLink) ends that round alone.
"""

import shutil
import time
import uuid
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from flwr.app import Error, Message, Metadata, RecordDict
from flwr.common.constant import ErrorCode
from flwr.proto.runtime_pb2 import GetNodesRequest, GetNodesResponse
from loguru import logger

from zk0.errors import FederationError, MessageLost
from zk0.federation.api import Endpoint
from zk0.federation.parcel import file_record, packed, parcel
from zk0.federation.run import begun_run, stop_run
from zk0.federation.task import Task

_POLL_SECONDS = 0.5
_LOOK_AT_NODES_SECONDS = 2.0
_LOST = {ErrorCode.MESSAGE_UNAVAILABLE, ErrorCode.REPLY_MESSAGE_UNAVAILABLE, ErrorCode.NODE_UNAVAILABLE}
"""Errors of the way, not of the node: asked again, it answers from its disk what it has done already."""


@dataclass
class _Question:
    """A message to one node, and where its answer is."""

    message: Message
    sent_as: str = ""
    """Id of the message on its way; empty: it is yet to be sent, or again."""
    node_since: str = ""
    """When the node that it was sent to had been started; once that changes, the node has forgotten the message."""
    answer: Any = None
    """Object tree of the answer, once the node has begun to upload it."""

    @property
    def node(self) -> int:
        return int(self.message.metadata.dst_node_id)

    @property
    def seconds_left(self) -> float:
        about = self.message.metadata
        return float(about.created_at + about.ttl - time.time())

    def again(self) -> None:
        """It is to be asked once more."""
        self.sent_as, self.answer = "", None

    def sent_to(self, node: int, content: RecordDict, run: int) -> Message:
        """The message as it is sent to that node in that run."""
        about = self.message.metadata
        return _message(run, content, (node, about.message_type, self.seconds_left, about.group_id))


class DeployedGrid:
    """The nodes that are connected to a SuperLink.

    Args:
        endpoint: of the SuperLink.
        inbox: folder for weights that arrive.
        names: nodes that may be asked, by the name they were enrolled under; empty: all.
        absence_seconds: how long a node may be out of reach before it is no longer waited for.
    """

    def __init__(
        self, endpoint: Endpoint, inbox: Path, names: Sequence[str] = (), absence_seconds: float = 300.0
    ) -> None:
        self._endpoint = endpoint
        self._inbox = inbox
        self._names = frozenset(names)
        self._absence = absence_seconds
        self._away_since: dict[int, float] = {}
        self._called: dict[int, str] = {}
        self._run = ExitStack()
        self._task: Task | None = None
        self._questions: dict[str, _Question] = {}
        self._polled = self._looked = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, trace: TracebackType | None) -> None:
        self.forget(())

    def get_nodes(self) -> list[Any]:
        """Nodes that are connected now, and that may be asked; asked again at once, it waits a moment."""
        self._pause()
        return self._nodes()

    def _nodes(self) -> list[Any]:
        found = self._open().call("get-nodes", GetNodesRequest(), GetNodesResponse).nodes
        self._called |= {int(node.node_id): str(node.name) for node in found}
        return [node for node in found if not self._names or node.name in self._names]

    def make_message(self, content: RecordDict, node: int, kind: str, ttl: float, group: str) -> Message:
        """A message of the open run."""
        return _message(self._open().run_id, content, (node, kind, ttl, group))

    def push_messages(self, messages: Sequence[Message]) -> list[str]:
        """Send messages to those nodes that are there, and to the others once they are; answers their ids."""
        questions = {message.metadata.message_id: _Question(message) for message in messages}
        self._questions.update(questions)
        self._send(self._open())
        return list(questions)

    def pull_messages(self, ids: Sequence[str]) -> list[Message]:
        """Answers that have arrived, each once; waits a moment where there is none."""
        task = self._open()
        self._pause()
        sent = {q.sent_as: q for q in self._questions.values() if q.sent_as and q.answer is None}
        for head, tree in task.arrived(list(sent)):
            sent[head.metadata.reply_to_message_id].answer = tree
        waiting = {name: self._questions[name] for name in ids if name in self._questions}
        answers = [answer for name, q in waiting.items() if (answer := self._answer(task, name, q)) is not None]
        if self._polled > self._looked + _LOOK_AT_NODES_SECONDS:
            self._looked = self._polled
            answers += self._look(task)
        for answer in answers:
            self._questions.pop(answer.metadata.reply_to_message_id, None)
        return answers

    def forget(self, ids: Sequence[str]) -> None:
        """Nobody waits for these any longer: the run ends, and with it whatever is still on its way."""
        task, self._task = self._task, None
        if task is not None and self._questions:
            stop_run(self._endpoint, task.run_id)
        self._questions.clear()
        self._run.close()
        shutil.rmtree(self._inbox, ignore_errors=True)

    def _pause(self) -> None:
        time.sleep(max(0.0, self._polled + _POLL_SECONDS - time.monotonic()))
        self._polled = time.monotonic()

    def _open(self) -> Task:
        if self._task is None:
            self._task = self._run.enter_context(begun_run(self._endpoint))
        return self._task

    def _answer(self, task: Task, name: str, question: _Question) -> Message | None:
        """The answer to a question as its asker knows it, once it is whole."""
        if question.answer is None:
            return None
        try:
            if not task.is_whole(question.answer):
                return None
            found = task.fetch(question.answer, self._inbox / f"{name}.safetensors")
        except FederationError as e:
            code = ErrorCode.REPLY_MESSAGE_UNAVAILABLE if isinstance(e, MessageLost) else ErrorCode.UNKNOWN
            found = Message(Error(code, str(e)), reply_to=question.message)
        if found.has_error() and found.error.code in _LOST and question.seconds_left > 0:
            logger.warning("node {}: {} (code {}); asking again", question.node, found.error.reason, found.error.code)
            question.again()
            return None
        found.metadata.__dict__["_reply_to_message_id"] = name
        return found

    def _look(self, task: Task) -> list[Message]:
        """Ask those again who have been started anew or are back, and give up those who are away for too long."""
        since = self._send(task)
        now, gone = time.monotonic(), []
        for question in self._questions.values():
            if question.node in since:
                self._away_since.pop(question.node, None)
                if question.sent_as and question.answer is None and since[question.node] != question.node_since:
                    logger.warning("node {} was started anew at {}; asking again", question.node, since[question.node])
                    question.again()
            elif now - self._away_since.setdefault(question.node, now) >= self._absence:
                reason = f"its node has been out of reach for {now - self._away_since[question.node]:.0f} s"
                gone.append(Message(Error(ErrorCode.NODE_UNAVAILABLE, reason), reply_to=question.message))
        return gone

    def _send(self, task: Task) -> dict[int, str]:
        """Send what is due to the nodes that are there; answers those, and when they were started.

        A SuperLink that has lost its memory, or a new kit, gives a node another number: then its name says who it is.
        """
        there = {str(node.name): node for node in self._nodes()}
        nodes = {number: there[name] for number, name in self._called.items() if name in there}
        since = {number: str(node.last_activated_at) for number, node in nodes.items()}
        due = [q for q in self._questions.values() if not q.sent_as and q.node in since and q.seconds_left > 0]
        record = cache(file_record)
        parcels = [
            parcel(q.sent_to(int(nodes[q.node].node_id), packed(q.message.content, record), task.run_id)) for q in due
        ]
        for question, sent_as in zip(due, task.push(parcels) if parcels else (), strict=True):
            question.sent_as, question.node_since = sent_as, since[question.node]
        return since


def _message(run: int, content: RecordDict, about: tuple[int, str, float, str]) -> Message:
    node, kind, ttl, group = about
    metadata = Metadata(run, uuid.uuid4().hex, 1, node, "", group, time.time(), ttl, kind)
    return Message(content=content, metadata=metadata)

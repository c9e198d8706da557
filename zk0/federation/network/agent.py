"""The agent of a node: `python -m zk0.federation.network.agent FOLDER` handles the messages of the node's SuperNode.

It acquires the SuperNode's tasks and lets a warm worker process of this machine handle them, as the local engine does.
It never unpacks the app bundle that a run carries: only the zk0 that is installed here runs here.
"""

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flwr.app import Error, Message
from loguru import logger
from pydantic import Field

from zk0.audit.journal import SentJournal
from zk0.client.round_state import remove_old_sessions
from zk0.errors import FederationError, MessageLost, TransientError
from zk0.federation.engines.local import LocalGrid
from zk0.federation.flower.api_client import ApiClient, Endpoint
from zk0.federation.flower.flower_message import embed_weights, to_flower
from zk0.federation.flower.private_api import CLIENT_APP, message_without_content
from zk0.federation.flower.runtime_task import FetchLimit, RuntimeTask, acquire_task
from zk0.federation.protocol.answers import refusal
from zk0.federation.protocol.client_app import GPU_WAIT
from zk0.federation.protocol.exchange import RECEIPTS, take_turn_limit
from zk0.federation.protocol.request_limits import LIMITS
from zk0.federation.protocol.sent_log import REMOTE, SENT_JOURNAL, record_sent, with_journal_head
from zk0.federation.protocol.shown_heads import LEDGER_KEY
from zk0.log_text import write_clean_logs
from zk0.records import Record
from zk0.settings.dataset_settings import ClientSettings
from zk0.settings.node_limits import NodeLimits

_POLL_SECONDS = 0.2
_UNAVAILABLE_SECONDS = 1.0
_RETRY_SECONDS = 10.0
_NO_DEADLINE_SECONDS = 1e6
"""A worker is not interrupted at the end of a round: the update that it finishes is its answer to the next attempt."""
_SILENT_SECONDS = 1800.0
"""After the deadline, a worker without progress for this long counts as dead."""
_SESSION_SECONDS = 14 * 86_400.0


class AgentSettings(Record):
    """The client of this node, its folders, and the SuperNode's Runtime API."""

    client: ClientSettings
    scratch: Path
    cache: Path
    supernode: Endpoint
    ledger_key: str
    """Of the server, from the enrolment kit."""
    limits: NodeLimits = NodeLimits()
    max_sessions: int | None = Field(default=None, ge=1)
    """The node stops after so many sessions have ended; None: it stays."""
    ended_before: frozenset[str] = frozenset()
    """Sessions that had ended when the node was started."""


class ProgressClock:
    """A progress listener that stores when a worker last made progress, and whether it waits for a GPU."""

    def __init__(self) -> None:
        self.at = time.monotonic()
        self.waits = False

    def __call__(self, client: str, round_number: int, step: int, steps: int, work: str) -> None:
        """Store the time."""
        self.at, self.waits = time.monotonic(), work == GPU_WAIT


class SessionCount:
    """Counts the sessions that have ended since the node was started: those whose receipts the client has answered."""

    def __init__(self, settings: AgentSettings) -> None:
        self._settings, self._journal_bytes, self._reached = settings, -1, False

    def reached(self) -> bool:
        """Return whether the node has taken part in as many sessions as it shall."""
        if self._settings.max_sessions is None:
            return False
        journal = self._settings.scratch / SENT_JOURNAL
        size = journal.stat().st_size if journal.is_file() else 0
        if size != self._journal_bytes:
            ended = ended_sessions(self._settings.scratch) - self._settings.ended_before
            self._journal_bytes, self._reached = size, len(ended) >= self._settings.max_sessions
        return self._reached


def ended_sessions(scratch: Path) -> frozenset[str]:
    """Return the sessions whose receipts a client has answered."""
    return frozenset(sent.to for sent in SentJournal(scratch / SENT_JOURNAL).read() if sent.kind == RECEIPTS)


def answer_tasks(
    settings: AgentSettings, grid: LocalGrid, progress: ProgressClock, stopping: Callable[[], bool]
) -> None:
    """Handle every task of the SuperNode, one after the other.

    Args:
        settings: of the agent.
        grid: with one node, whose worker handles the messages.
        progress: listener of the grid.
        stopping: returns whether to return before the next task.

    Raises:
        FederationError, OSError: a message could not be answered; the supervisor restarts the SuperNode.
    """
    with ApiClient(settings.supernode, component=CLIENT_APP) as api:
        while not stopping():
            try:
                acquired = acquire_task(api, CLIENT_APP)
            except TransientError:  # the SuperNode is starting
                time.sleep(_UNAVAILABLE_SECONDS)
                continue
            if acquired is None:
                time.sleep(_POLL_SECONDS)
                continue
            try:
                _answer_task(settings, grid, progress, acquired[0])
            except TransientError as e:  # the SuperNode has restarted and lost the request
                logger.warning("an answer could not be sent: {}; it is kept until the request comes again", e)
            _delete_old_files(settings.scratch)


def _answer_task(settings: AgentSettings, grid: LocalGrid, progress: ProgressClock, token: str) -> None:
    with RuntimeTask(settings.supernode, token, CLIENT_APP, _RETRY_SECONDS) as task:
        for listed, tree in task.pull_messages([]):
            seconds = settings.limits.max_download_hours * 3600
            target = settings.scratch / f"request-{tree.object_id[:16]}.safetensors"
            limit = FetchLimit(
                deadline=time.monotonic() + seconds,
                stall_seconds=seconds,
                max_bytes=int(settings.limits.max_download_gb * 1e9),
            )
            try:
                request = task.fetch_message(tree, target, limit)
            except MessageLost:
                raise
            except FederationError as e:
                request = message_without_content(listed, tree.object_id)
                reply = _refused_download(settings.scratch, request, e)
            else:
                reply = _handle(grid, progress, request)
            content: Any = reply.error if reply.has_error() else embed_weights(reply.content)
            if not task.push_reply(to_flower(Message(content, reply_to=request))):
                logger.warning("run {} is over: the SuperNode dropped the answer to its request", task.run_id)


def _refused_download(scratch: Path, request: Message, problem: FederationError) -> Message:
    """Return the answer to a request that breaks the node's limits for downloads; it is in the journal, as all are."""
    reason = f"the server sends what this node's limits do not allow: {problem}"
    logger.error("a request was not downloaded: {}", reason)
    content = with_journal_head(refusal(reason), scratch)
    record_sent(request, content, scratch)
    return Message(content, reply_to=request)


def _delete_old_files(scratch: Path) -> None:
    """Delete received weights, and what is left of sessions that never ended; those that end delete their own files."""
    remove_old_sessions(scratch, _SESSION_SECONDS)
    for file in scratch.glob("request-*"):
        file.unlink(missing_ok=True)


def _handle(grid: LocalGrid, progress: ProgressClock, request: Message) -> Message:
    """Let the worker handle a request, and return its reply."""
    if request.has_error():
        return Message(Error(0, "the request is an error"), reply_to=request)
    metadata, deadline = request.metadata, time.monotonic() + take_turn_limit(request)
    (node,) = grid.get_nodes()
    message = grid.make_message(
        request.content, node.node_id, metadata.message_type, _NO_DEADLINE_SECONDS, metadata.group_id
    )
    ids = grid.push_messages([message])
    while not (replies := grid.pull_messages(ids)):
        if not progress.waits and time.monotonic() > max(deadline, progress.at + _SILENT_SECONDS):
            raise FederationError(f"the worker is late and has made no progress for {_SILENT_SECONDS:g} s")
        time.sleep(_POLL_SECONDS)
    progress.waits = False
    return replies[0]


def main(folder: Path) -> None:
    """Run the agent with the settings in `agent.json`."""
    write_clean_logs()
    settings = AgentSettings.model_validate_json((folder / "agent.json").read_text(encoding="utf-8"))
    config = {
        "client": settings.client.model_dump_json(),
        "scratch": str(settings.scratch),
        "cache": str(settings.cache),
        REMOTE: True,
        LIMITS: settings.limits.model_dump_json(),
        LEDGER_KEY: settings.ledger_key,
    }
    settings.scratch.mkdir(parents=True, exist_ok=True)
    progress = ProgressClock()
    with LocalGrid([config], 1, folder / "logs", progress) as grid:
        answer_tasks(settings, grid, progress, SessionCount(settings).reached)
    logger.info("{} sessions have ended; the node stops", settings.max_sessions)
    os.kill(os.getppid(), signal.SIGTERM)  # the supervisor ends SuperNode and agent


if __name__ == "__main__":
    main(Path(sys.argv[1]))

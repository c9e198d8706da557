"""The local engine: warm worker processes on this machine call the ClientApp; no server, no network.

It offers what Flower's Grid offers, so that one `collect` serves every engine.
"""

import queue
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import SimpleNamespace, TracebackType
from typing import Any, Self

from flwr.app import Context, Error, Message, Metadata, RecordDict
from flwr.common.constant import ErrorCode

from zk0.errors import FederationError
from zk0.federation.client_app import StepListener
from zk0.federation.client_process import ClientProcess, ForkServer

_FIRST_NODE = 1000
_STOP_SECONDS = 5.0


class LocalGrid:
    """Nodes answered by worker processes, or with `workers = 0` by this process.

    Args:
        nodes: one node configuration a client.
        workers: number of processes.
        log_folder: what a worker prints goes to worker-K.log in here, what their fork server does to workers.log.
        on_step: told client, round, step, steps and what they are of (from a thread).
        most: says how many workers can work at once; it may take seconds, for none of them waits for it. None: all.
    """

    def __init__(
        self,
        nodes: Iterable[Mapping[str, Any]],
        workers: int,
        log_folder: Path,
        on_step: StepListener | None = None,
        most: Callable[[], int | None] = lambda: None,
    ) -> None:
        self.run_id = uuid.uuid4().int >> 66
        self._contexts = {
            _FIRST_NODE + i: Context(self.run_id, _FIRST_NODE + i, dict(c), RecordDict(), {})
            for i, c in enumerate(nodes)
        }
        self._jobs: queue.Queue[tuple[Message, float] | None] = queue.Queue()
        self._replies: dict[str, Message] = {}
        self._log_folder = log_folder
        self._on_step = on_step or (lambda *_: None)
        self._server = ForkServer(log_folder / "workers.log")
        self._workers = [ClientProcess(self._server, i, log_folder, self._on_step) for i in range(workers)]
        self._threads: list[threading.Thread] = []
        self._closing = threading.Event()
        self._most = most

    def __enter__(self) -> Self:
        self._log_folder.mkdir(parents=True, exist_ok=True)
        for number, worker in enumerate(self._workers):
            thread = threading.Thread(target=self._drive, args=(number, worker), daemon=True, name="zk0-worker-driver")
            thread.start()
            self._threads.append(thread)
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, trace: TracebackType | None) -> None:
        self._closing.set()
        for worker in self._workers:
            worker.close()
        for _ in self._threads:
            self._jobs.put(None)
        self._server.close()
        for thread in self._threads:
            thread.join(_STOP_SECONDS)

    def get_nodes(self) -> list[SimpleNamespace]:
        """All nodes; they are always there."""
        return [SimpleNamespace(node_id=node) for node in self._contexts]

    def make_message(self, content: RecordDict, node: int, kind: str, ttl: float, group: str) -> Message:
        """A message as Flower's own grids make them."""
        metadata = Metadata(self.run_id, uuid.uuid4().hex, 1, node, "", group, time.time(), ttl, kind)
        return Message(content=content, metadata=metadata)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Hand messages out; answers their ids."""
        ids = []
        for message in messages:
            ids.append(message.metadata.message_id)
            if self._workers:
                self._jobs.put((message, time.monotonic() + message.metadata.ttl))
            else:
                self._replies[message.metadata.message_id] = self._in_process(message)
        return ids

    def pull_messages(self, ids: Iterable[str]) -> list[Message]:
        """Replies that have arrived, each once."""
        return [self._replies.pop(i) for i in list(ids) if i in self._replies]

    def forget(self, ids: Iterable[str]) -> None:
        """Nobody waits for these any longer."""
        for one in ids:
            self._replies.pop(one, None)

    def _in_process(self, message: Message) -> Message:
        from zk0.federation import client_app

        client_app.listen(self._on_step)
        return client_app.app(message, self._contexts[message.metadata.dst_node_id])

    def _drive(self, number: int, worker: ClientProcess) -> None:
        """One thread a worker: it lives as long as the grid, for processes die with the thread that started them."""
        if number == 0:
            self._server.start()
        elif (most := self._most()) is not None and number >= most:
            return
        while (job := self._jobs.get()) is not None and not self._closing.is_set():
            message, deadline = job
            node = message.metadata.dst_node_id
            if time.monotonic() > deadline:  # nobody waits for it any more: it must not keep the next round waiting
                continue
            try:
                reply, self._contexts[node] = worker.ask(message, self._contexts[node], deadline)
            except FederationError as e:
                reply = Message(Error(ErrorCode.CLIENT_APP_CRASHED, str(e)), reply_to=message)
            self._replies[message.metadata.message_id] = reply

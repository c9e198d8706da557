"""Several hostile nodes with valid kits at one server, each in a thread."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx
from flwr.app import ConfigRecord, Message, RecordDict
from hostile_node import HostileNode
from waiting import wait_until

from zk0.federation.network.server import ServerFolder

Work = Callable[[HostileNode, Message], None]
"""Answers a request, or does not."""


def refusal(text: str, **more: bool) -> RecordDict:
    """The answer that gives a reason in place of what was asked."""
    return RecordDict({"answer": ConfigRecord({"refusal": text, **more})})


class HostileFleet:
    """Nodes that call the gateway as they like.

    Args:
        server: to enroll them at.
        folder: for their files.
        names: of the nodes.
        work: how a node answers a request.
    """

    def __init__(self, server: ServerFolder, folder: Path, names: Sequence[str], work: Work) -> None:
        kits = [server.enroll(name) for name in names]
        self._nodes = [HostileNode(kit, folder / kit.name) for kit in kits]
        self._work, self._stop = work, 0.0
        self._connected: list[str] = []
        self.failures: list[str] = []

    @contextmanager
    def running(self, seconds: float) -> Iterator[None]:
        """Let the nodes answer in the block, once all have connected, at most for a time; then none may have failed."""
        self._stop = time.monotonic() + seconds
        threads = [threading.Thread(target=self._run, args=(node,), daemon=True) for node in self._nodes]
        for thread in threads:
            thread.start()
        wait_until(lambda: len(self._connected) + len(self.failures) == len(threads))
        try:
            yield
        finally:
            self._stop = 0.0
        for thread in threads:
            thread.join(20)
        assert not self.failures, self.failures

    def _run(self, node: HostileNode) -> None:
        try:
            wait_until(lambda: self._is_admitted(node))
            self._connected.append(node.name)
            while (request := node.next_request(self._stop_time)) is not None:
                self._work(node, request)
        except Exception as e:
            self.failures.append(f"{node.name}: {type(e).__name__}: {e}")

    def _is_admitted(self, node: HostileNode) -> bool:
        """Connect; a server that runs admits a node that was just enrolled after a moment."""
        try:
            node.activate()
        except httpx.HTTPStatusError as e:
            if e.response.status_code not in (httpx.codes.UNAUTHORIZED, httpx.codes.PRECONDITION_FAILED):
                raise
            return False
        return True

    def _stop_time(self) -> float:
        return self._stop

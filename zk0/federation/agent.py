"""What a client runs beside its SuperNode: `python -m zk0.federation.agent FOLDER`.

It takes the SuperNode's tasks and lets a warm worker of this machine answer them, the same as the local engine's. The
app that a run brings along is never unpacked: only the zk0 that is installed here can run here.
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flwr.app import Error, Message
from loguru import logger

from zk0.errors import FederationError, TransientError
from zk0.federation.api import Api, Endpoint
from zk0.federation.local import LocalGrid
from zk0.federation.parcel import packed, parcel
from zk0.federation.sent import ELSEWHERE
from zk0.federation.task import CLIENT_APP, Task, acquire
from zk0.records import Record
from zk0.session import ClientSettings

_POLL_SECONDS = 0.2
_AWAY_SECONDS = 1.0
_PATIENCE_SECONDS = 10.0
_UNHURRIED_SECONDS = 1e6
"""A worker is not cut short at the end of a round: what it finishes is its answer in the next attempt."""
_SILENT_SECONDS = 1800.0
"""But one that is late and has not told of a step for so long is taken for dead."""
_KEEP_UPDATES_SECONDS = 14 * 86_400.0


class AgentSettings(Record):
    """Who answers here, with which data, and where the SuperNode's Runtime API is."""

    client: ClientSettings
    scratch: Path
    cache: Path
    supernode: Endpoint


class Progress:
    """When a worker has told of a step for the last time."""

    def __init__(self) -> None:
        self.at = time.monotonic()

    def __call__(self, client: str, round_number: int, step: int, steps: int, work: str) -> None:
        """A step was told."""
        self.at = time.monotonic()


def serve(settings: AgentSettings, grid: LocalGrid, progress: Progress, over: Callable[[], bool]) -> None:
    """Answer every task of the SuperNode, one after the other, until `over`.

    Raises:
        FederationError, OSError: an answer could not be given; whoever keeps this process starts the SuperNode anew.
    """
    with Api(settings.supernode, component="flwr-clientapp") as api:
        while not over():
            try:
                taken = acquire(api, CLIENT_APP)
            except TransientError:  # it is not up yet, or is started again
                time.sleep(_AWAY_SECONDS)
                continue
            if taken is None:
                time.sleep(_POLL_SECONDS)
                continue
            try:
                _answer(settings, grid, progress, taken[0])
            except TransientError as e:  # the SuperNode was started again, and has forgotten the question
                logger.warning("an answer could not be given back: {}; it is kept for when it is asked for again", e)
            _forget_old(settings.scratch)


def _answer(settings: AgentSettings, grid: LocalGrid, progress: Progress, token: str) -> None:
    with Task(settings.supernode, token, CLIENT_APP, _PATIENCE_SECONDS) as task:
        for _, tree in task.arrived([]):
            asked = task.fetch(tree, settings.scratch / f"asked-{tree.object_id[:16]}.safetensors")
            found = _from_worker(grid, progress, asked)
            content: Any = found.error if found.has_error() else packed(found.content)
            task.push([parcel(Message(content, reply_to=asked))])


def _forget_old(scratch: Path) -> None:
    """Weights that came, and updates of sessions long gone: a session in progress removes its own."""
    limit = time.time() - _KEEP_UPDATES_SECONDS
    old = [file for file in (scratch / "updates").glob("*") if file.stat().st_mtime < limit]
    for file in (*scratch.glob("asked-*"), *old):
        file.unlink(missing_ok=True)


def _from_worker(grid: LocalGrid, progress: Progress, asked: Message) -> Message:
    about, due = asked.metadata, time.monotonic() + asked.metadata.ttl
    if asked.has_error():
        return Message(Error(0, "asked with an error"), reply_to=asked)
    (node,) = grid.get_nodes()
    inner = grid.make_message(asked.content, node.node_id, about.message_type, _UNHURRIED_SECONDS, about.group_id)
    ids = grid.push_messages([inner])
    while not (replies := grid.pull_messages(ids)):
        if time.monotonic() > max(due, progress.at + _SILENT_SECONDS):
            raise FederationError(f"the worker is late and has told of no step for {_SILENT_SECONDS:g} s")
        time.sleep(_POLL_SECONDS)
    return replies[0]


def main(folder: Path) -> None:
    """Serve with the settings in `agent.json`."""
    settings = AgentSettings.model_validate_json((folder / "agent.json").read_text(encoding="utf-8"))
    config = {
        "client": settings.client.model_dump_json(),
        "scratch": str(settings.scratch),
        "cache": str(settings.cache),
        ELSEWHERE: True,
    }
    settings.scratch.mkdir(parents=True, exist_ok=True)
    progress = Progress()
    with LocalGrid([config], 1, folder / "logs", progress) as grid:
        serve(settings, grid, progress, lambda: False)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

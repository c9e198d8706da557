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
from zk0.federation.task import CLIENT_APP, Task, acquire
from zk0.records import Record
from zk0.session import ClientSettings

_POLL_SECONDS = 0.2
_AWAY_SECONDS = 1.0
_PATIENCE_SECONDS = 10.0
_UNHURRIED_SECONDS = 1e6
"""A worker is not cut short at the end of a round: what it finishes is its answer in the next attempt."""


class AgentSettings(Record):
    """Who answers here, with which data, and where the SuperNode's Runtime API is."""

    client: ClientSettings
    scratch: Path
    cache: Path
    supernode: Endpoint


def serve(settings: AgentSettings, grid: LocalGrid, over: Callable[[], bool]) -> None:
    """Answer every task of the SuperNode, one after the other, until `over`."""
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
                _answer(settings, grid, taken[0])
            except (TransientError, FederationError) as e:
                logger.warning("an answer could not be given back: {}; it is kept for when it is asked for again", e)


def _answer(settings: AgentSettings, grid: LocalGrid, token: str) -> None:
    with Task(settings.supernode, token, CLIENT_APP, _PATIENCE_SECONDS) as task:
        ((_, tree),) = task.arrived([])
        asked = task.fetch(tree, settings.scratch / f"asked-{tree.object_id[:16]}.safetensors")
        try:
            found = _from_worker(grid, asked)
        finally:
            for file in settings.scratch.glob("asked-*"):
                file.unlink(missing_ok=True)
        content: Any = found.error if found.has_error() else packed(found.content)
        task.push([parcel(Message(content, reply_to=asked))])


def _from_worker(grid: LocalGrid, asked: Message) -> Message:
    about = asked.metadata
    if asked.has_error():
        return Message(Error(0, "asked with an error"), reply_to=asked)
    (node,) = grid.get_nodes()
    inner = grid.make_message(asked.content, node.node_id, about.message_type, _UNHURRIED_SECONDS, about.group_id)
    ids = grid.push_messages([inner])
    while not (replies := grid.pull_messages(ids)):
        time.sleep(_POLL_SECONDS)
    return replies[0]


def main(folder: Path) -> None:
    """Serve with the settings in `agent.json`."""
    settings = AgentSettings.model_validate_json((folder / "agent.json").read_text(encoding="utf-8"))
    config = {
        "client": settings.client.model_dump_json(),
        "scratch": str(settings.scratch),
        "cache": str(settings.cache),
    }
    settings.scratch.mkdir(parents=True, exist_ok=True)
    with LocalGrid([config], 1, folder / "logs") as grid:
        serve(settings, grid, lambda: False)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

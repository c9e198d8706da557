"""Send plans out, spool each answer to disk as it arrives, refuse bad ones: the same on every engine.

Called again for the same round, only clients without a spooled answer are asked; and a client that is asked
again answers from its own disk. So a retry never repeats finished work.
"""

import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from flwr.app import ConfigRecord, Message, MessageType, RecordDict
from pydantic import ValidationError

from zk0.aggregate import verify_update
from zk0.errors import FederationError
from zk0.federation.client_app import save_blob
from zk0.folder import write_whole
from zk0.records import Member, Record, Refusal, Update
from zk0.session import RoundPlan, Terms

_POLL_SECONDS = 0.02


class Grid(Protocol):
    """What an engine offers; Flower's grids offer it too."""

    def get_nodes(self) -> Sequence[Any]: ...
    def make_message(self, content: RecordDict, node: int, kind: str, ttl: float, group: str) -> Message: ...
    def push_messages(self, messages: Sequence[Message]) -> Sequence[str]: ...
    def pull_messages(self, ids: Sequence[str]) -> Sequence[Message]: ...


class Collected(Record):
    """What came back in one round: good updates and refusals, each in the order of client names."""

    updates: tuple[Update, ...]
    refusals: tuple[Refusal, ...]


class Federation:
    """The clients of one session, behind one engine.

    Args:
        grid: the engine.
        clients: names of the clients that are expected.
        timeout_seconds: for one round, and for joining.
        nodes_file: on simulated engines, where a node finds its configuration.
    """

    def __init__(
        self, grid: Grid, clients: Sequence[str], timeout_seconds: float, nodes_file: Path | None = None
    ) -> None:
        self._grid = grid
        self._clients = tuple(clients)
        self._timeout = timeout_seconds
        self._nodes_file = nodes_file
        self._node_of: dict[str, int] = {}

    def join(self, terms: Terms) -> tuple[Member, ...]:
        """Every client's answer to the terms, in the order the session names them.

        Raises:
            FederationError: a client did not answer, or may not take part; says why for each.
        """
        nodes = self._wait_for_nodes()
        content = RecordDict({"config": self._config(terms=terms.model_dump_json())})
        questions = {str(node): (node, content) for node in nodes}
        members: dict[str, Member] = {}
        faults: list[str] = []
        for asked, answer in self._ask(questions, MessageType.QUERY, "join"):
            if isinstance(answer, str):
                faults.append(answer)
                continue
            try:
                member = Member.model_validate_json(str(answer["answer"]["member"]))
            except (KeyError, ValidationError) as e:
                faults.append(f"an answer that is no member ({_first_line(e)})")
                continue
            members[member.client] = member
            self._node_of[member.client] = questions[asked][0]
        if faults:
            raise FederationError(
                f"{len(faults)} of {len(nodes)} clients cannot take part: " + "; ".join(sorted(faults))
            )
        if missing := sorted(set(self._clients) - members.keys()):
            raise FederationError(
                f"clients that did not join: {', '.join(missing)}; expected {', '.join(self._clients)}"
            )
        return tuple(members[name] for name in self._clients)

    def train(
        self,
        plans: Sequence[RoundPlan],
        weights: Path,
        spool: Path,
        on_update: Callable[[str], None] | None = None,
    ) -> Collected:
        """Let clients train on their plans from the weights in a file; answers lie in `spool` afterwards.

        `on_update` is told each client as it is done with, whether its update is good or refused.
        """
        spool.mkdir(parents=True, exist_ok=True)
        plans_of = {plan.client: plan for plan in plans}
        updates = {name: u for name, plan in plans_of.items() if (u := _spooled(spool, plan, weights)) is not None}
        for name in updates:
            (on_update or _ignore)(name)
        refusals: dict[str, Refusal] = {}
        questions = {
            name: (self._node(name), self._train_content(plan, weights))
            for name, plan in plans_of.items()
            if name not in updates
        }
        for name, answer in self._ask(questions, MessageType.TRAIN, str(plans[0].round)):
            taken = _take(answer, plans_of[name], spool, weights, set(updates))
            if isinstance(taken, Refusal):
                refusals[name] = taken
            else:
                updates[name] = taken
            (on_update or _ignore)(name)
        return Collected(
            updates=tuple(updates[n] for n in sorted(updates)), refusals=tuple(refusals[n] for n in sorted(refusals))
        )

    def _wait_for_nodes(self) -> list[int]:
        deadline = time.monotonic() + self._timeout
        while len(nodes := [int(n.node_id) for n in self._grid.get_nodes()]) < len(self._clients):
            if time.monotonic() > deadline:
                raise FederationError(f"{len(nodes)} nodes after {self._timeout:g} s, expected {len(self._clients)}")
            time.sleep(_POLL_SECONDS)
        return nodes

    def _node(self, client: str) -> int:
        if client not in self._node_of:
            raise FederationError(f"{client}: has not joined; it must join before it trains")
        return self._node_of[client]

    def _config(self, **values: str) -> ConfigRecord:
        return ConfigRecord({**values, **({"nodes": str(self._nodes_file)} if self._nodes_file else {})})

    def _train_content(self, plan: RoundPlan, weights: Path) -> RecordDict:
        """All engines so far share this machine's disk, so the weights travel by path."""
        return RecordDict({"config": self._config(plan=plan.model_dump_json(), **{"weights-path": str(weights)})})

    def _ask(
        self, questions: Mapping[str, tuple[int, RecordDict]], kind: str, group: str
    ) -> Iterator[tuple[str, RecordDict | str]]:
        """Who was asked and what came back, as it comes; a string says why there is no answer."""
        make, ttl = self._grid.make_message, self._timeout
        names = list(questions)
        ids = self._grid.push_messages([make(questions[n][1], questions[n][0], kind, ttl, group) for n in names])
        waiting = dict(zip(ids, names, strict=True))
        deadline = time.monotonic() + self._timeout + 10 * _POLL_SECONDS
        while waiting and time.monotonic() < deadline:
            replies = self._grid.pull_messages(list(waiting))
            for reply in replies:
                name = waiting.pop(reply.metadata.reply_to_message_id)
                yield name, _content(reply)
            if not replies:
                time.sleep(_POLL_SECONDS)
        for name in waiting.values():
            yield name, f"no answer within {self._timeout:g} s"


def _ignore(client: str) -> None:
    """Nobody listens."""


def _content(reply: Message) -> RecordDict | str:
    if reply.has_error():
        return f"{reply.error.reason} (code {reply.error.code})"
    if "answer" not in reply.content:
        return "an empty answer"
    answer = reply.content["answer"]
    return str(answer["refusal"]) if "refusal" in answer else reply.content


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _take(answer: RecordDict | str, plan: RoundPlan, spool: Path, weights: Path, seen: set[str]) -> Update | Refusal:
    """A good answer as an update in the spool; a bad one as a refusal, its weights kept aside for a look."""
    if isinstance(answer, str):
        return Refusal(client=plan.client, reason=answer)
    target = spool / f"{plan.client}.safetensors"
    try:
        update = Update.model_validate_json(str(answer["answer"]["update"]))
        if "weights" in answer:
            save_blob(answer["weights"], target)
        else:
            _link(Path(update.path), target)
    except (KeyError, ValidationError) as e:
        return Refusal(client=plan.client, reason=f"an answer that is no update ({_first_line(e)})")
    except FileNotFoundError as e:
        return Refusal(client=plan.client, reason=f"the weights it names are not there: {e.filename}")
    update = update.model_copy(update={"path": str(target)})
    refusal = _other_than_asked(update, plan) or verify_update(
        update, round=plan.round, global_digest=plan.global_digest, global_path=weights, seen=seen
    )
    if refusal is not None:
        target.replace(target.with_suffix(".refused"))
        return refusal
    write_whole(target.with_suffix(".json"), _Spooled(plan=plan.digest(), update=update).model_dump_json())
    return update


def _other_than_asked(update: Update, plan: RoundPlan) -> Refusal | None:
    if update.client != plan.client:
        return Refusal(client=plan.client, reason=f"answers as {update.client}")
    if update.adapters != plan.training.adapters():
        reason = f"trained adapters {update.adapters}, expected {plan.training.adapters()}"
        return Refusal(client=plan.client, reason=reason)
    return None


class _Spooled(Record):
    plan: str
    update: Update


def _spooled(spool: Path, plan: RoundPlan, weights: Path) -> Update | None:
    """The good update that this very plan brought in an earlier attempt, if it is still good."""
    record = spool / f"{plan.client}.json"
    if not record.is_file():
        return None
    try:
        kept = _Spooled.model_validate_json(record.read_text(encoding="utf-8"))
    except ValidationError:
        return None
    if kept.plan != plan.digest():
        return None
    update = kept.update.model_copy(update={"path": str(spool / f"{plan.client}.safetensors")})
    fault = verify_update(update, round=plan.round, global_digest=plan.global_digest, global_path=weights, seen=())
    return update if fault is None else None


def _link(source: Path, target: Path) -> None:
    """One copy on disk where the file system allows it."""
    half = target.with_name(f".{target.name}.{os.getpid()}")
    half.unlink(missing_ok=True)
    try:
        os.link(source, half)
    except OSError:
        shutil.copyfile(source, half)
    half.replace(target)

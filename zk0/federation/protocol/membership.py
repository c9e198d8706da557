"""Membership of a session: the clients that join it, when it starts, resumes, or while it runs."""

import json
import time
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from flwr.app import ConfigRecord, MessageType, RecordDict
from loguru import logger

from zk0.audit.ledger_heads import HeadSigner
from zk0.errors import FederationError, TransientError, Zk0Error, list_problems
from zk0.federation.protocol.exchange import (
    POLL_SECONDS,
    Grid,
    Reply,
    Request,
    exchange_messages,
    timeout_reason,
)
from zk0.federation.protocol.received_log import ReceivedLog
from zk0.federation.protocol.registry import NO_NODE, Registry
from zk0.federation.protocol.shown_heads import HEADS
from zk0.federation.protocol.shown_journals import JOURNAL
from zk0.records import JoiningStep, Member
from zk0.settings.plans import SessionTerms

_MAX_DOUBLINGS = 20


class JoinProblem(NamedTuple):
    """Why a node cannot take part."""

    reason: str
    may_pass: bool
    """Whether the same node may be able to join later."""
    client: str = ""
    """That refuses, or its node's id where it is not known."""


class JoinListener(Protocol):
    """Callbacks about the nodes that are requested to join."""

    def on_join_requests(self, names: Mapping[int, str]) -> None:
        """Called before the requests are sent, with the name of each node by its id."""

    def on_join_answer(self, node: int, client: str, steps: Sequence[JoiningStep], problem: str) -> None:
        """Called when a node has answered: what its client has done, and why it cannot take part, if it cannot."""


class SilentJoinListener:
    """A JoinListener that does nothing."""

    def on_join_requests(self, names: Mapping[int, str]) -> None: ...
    def on_join_answer(self, node: int, client: str, steps: Sequence[JoiningStep], problem: str) -> None: ...


class Membership:
    """Lets the nodes of an engine join a session, and exchanges messages with the clients that have joined.

    Args:
        grid: the engine.
        clients: names of the clients that are expected; empty: every connected node takes part.
        timeout_seconds: for one round, and for joining.
        nodes_file: on simulated engines, the file with the nodes' configurations.
        min_clients: clients that the session needs.
        log: record of all answers.
        feature_timeout_seconds: for computing the features of a client's frames; None: `timeout_seconds`.
        heads: signs the heads of the session's ledger, which go with each request; None: none are sent.
        share_gpus: whether nodes may wait for each other on a GPU that they share; a round then gives up nodes
            `timeout_seconds` after its last answer.
        may_lack: whether the session begins with `min_clients` clients where others of `clients` refuse or are silent.
    """

    def __init__(
        self,
        grid: Grid,
        clients: Sequence[str],
        timeout_seconds: float,
        nodes_file: Path | None = None,
        min_clients: int = 1,
        log: ReceivedLog | None = None,
        feature_timeout_seconds: float | None = None,
        heads: HeadSigner | None = None,
        share_gpus: bool = False,
        may_lack: bool = False,
    ) -> None:
        self._grid = grid
        self._clients = tuple(clients)
        self._timeout = timeout_seconds
        self._feature_timeout = feature_timeout_seconds or timeout_seconds
        self._nodes_file = nodes_file
        self._min_clients, self._min_nodes = min_clients, len(self._clients) or min_clients
        self._registry = Registry()
        self._log = log or ReceivedLog(None, "")
        self._heads = heads
        self._share_gpus = share_gpus
        self._may_lack = may_lack
        self._asked_again = set[tuple[str, str]]()
        """Work and client, where the client had refused for a reason that may pass."""
        self._admissions = 0
        """Calls of `join_new_nodes`."""
        self._silences = dict[int, int]()
        """How often in a row each node did not answer, by node id."""
        self._asked_from = dict[int, int]()
        """The call of `join_new_nodes` from which on a silent node is requested again."""

    def join(
        self,
        terms: SessionTerms,
        previous: Sequence[Member] = (),
        wait_seconds: float = 0.0,
        listener: JoinListener | None = None,
    ) -> tuple[Member, ...]:
        """Request that every client joins, and return the members in the order of `clients`, or else of their names.

        Args:
            terms: of the session.
            previous: members from before the session was interrupted. The session goes on without those whose nodes
                are missing; each round refuses them until `join_new_nodes` finds them.
            wait_seconds: how long to wait for all nodes, where it can go on without some.
            listener: called before the requests and after each answer.

        Raises:
            FederationError: a client did not answer, or may not take part, and the session needs it; the message names
                each with the reason.
            TransientError: clients cannot take part, all for reasons that may pass; or some, and they were not asked
                again yet.
        """
        self._registry = Registry(terms.contract)
        nodes = self._wait_for_nodes(wait_seconds if previous or self._may_lack else None)
        problems, members = self._request_join(nodes, terms, self._timeout, listener), self._registry.members
        if len(members) >= self._min_clients:
            self._registry.restore([member for member in previous if member.client not in members])
        if self._may_lack and not previous:
            problems += self._record_absent(nodes)
            self._check_enough(problems)
        else:
            self._check_complete(problems, len(nodes), may_be_fewer=bool(previous))
        for problem in problems:
            logger.warning("does not take part: {}", problem.reason)
        return tuple(members[name] for name in self._clients or sorted(members) if name in members)

    def _record_absent(self, nodes: Mapping[int, str]) -> list[JoinProblem]:
        """Return the expected clients whose nodes are not connected, and record them."""
        reason = "its node is not connected"
        absent = [name for name in self._clients if name not in nodes.values()]
        for name in absent:
            self._log.record(Reply(name, None, reason), ("join", None), refusal=reason)
        return [JoinProblem(f"{name}: {reason}", may_pass=False) for name in absent]

    def _check_enough(self, problems: Sequence[JoinProblem]) -> None:
        """Raise unless enough clients have joined; those with problems that may pass are asked once more before.

        Raises:
            FederationError: fewer clients than the session needs, at least one of them for a reason that stays.
            TransientError: problems that may pass.
        """
        joined, needed = len(self._registry.members), max(self._min_clients, 1)
        if joined >= needed:
            passing = [problem for problem in problems if problem.may_pass and self._clients]
            self._ask_again("join", {one.client: one.reason.removeprefix(f"{one.client}: ") for one in passing})
            return
        asked = len(problems) + joined
        raise _join_error(f"{len(problems)} of {asked} clients cannot take part, {needed} must", problems)

    def _check_complete(self, problems: Sequence[JoinProblem], requested: int, *, may_be_fewer: bool) -> None:
        """Raise unless every expected client has joined, or sent what no honest one sends while enough have joined.

        Args:
            problems: why clients cannot take part.
            requested: nodes that were requested to join.
            may_be_fewer: whether problems are no reason to stop while every client is registered.

        Raises:
            FederationError: clients have not joined.
            TransientError: clients have not joined, all for reasons that may pass.
        """
        members, invalid = self._registry.members, self._registry.invalid
        enough = len(members) >= max(self._min_clients, 1) and len(problems) == len(invalid)
        incomplete = bool(self._clients) or len(members) < self._min_nodes
        if problems and not may_be_fewer and incomplete and not enough:
            raise _join_error(f"{len(problems)} of {requested} clients cannot take part", problems)
        missing = sorted(set(self._clients) - members.keys() - set(invalid.values()))
        if len(missing) > sum(not name for name in invalid.values()):
            raise FederationError(
                f"clients that did not join: {', '.join(missing)}; expected {', '.join(self._clients)}"
            )

    def _ask_again(self, work: str, refused: Mapping[str, str]) -> None:
        """Have clients asked for work once more that refuse for reasons that may pass.

        Args:
            work: that they refuse.
            refused: the reason of each of these clients.

        Raises:
            TransientError: some of them were not asked again yet.
        """
        first = {client: reason for client, reason in refused.items() if (work, client) not in self._asked_again}
        self._asked_again |= {(work, client) for client in first}
        if first:
            problems = sorted(f"{client}: {reason}" for client, reason in first.items())
            raise TransientError(list_problems(f"{len(first)} clients cannot {work} now", problems))

    def join_new_nodes(
        self, terms: SessionTerms, timeout_seconds: float, listener: JoinListener | None = None
    ) -> tuple[Member, ...]:
        """Request that nodes join that have connected since, and return all members in the order of their names.

        A node that may not take part gets another request with the next call; one that did not answer in time, too, but
        after N silences in a row only with the 2^(N-1)-th next one, because each call waits for it.
        """
        self._admissions += 1
        found = self._registry.unregistered_nodes(self._grid.get_nodes())
        nodes = {node: name for node, name in found.items() if self._asked_from.get(node, 0) <= self._admissions}
        for problem in self._request_join(nodes, terms, timeout_seconds, listener):
            logger.warning("does not take part: {}", problem.reason)
        return tuple(self._registry.members[name] for name in sorted(self._registry.members))

    def _wait_for_nodes(self, wait_seconds: float | None) -> dict[int, str]:
        """Return the nodes once all expected ones are connected: the name that each was enrolled under, by node id.

        After `wait_seconds`, unless None, as many nodes as a round needs are enough.
        """
        started = time.monotonic()
        while len(nodes := self._registry.unregistered_nodes(self._grid.get_nodes(), self._clients)) < self._min_nodes:
            waited = time.monotonic() - started
            if wait_seconds is not None and waited >= wait_seconds and len(nodes) >= self._min_clients:
                return nodes
            if waited > self._timeout:
                names = f" ({', '.join(sorted(nodes.values()))})" if any(nodes.values()) else ""
                needed = self._min_nodes if wait_seconds is None else f"at least {self._min_clients}"
                raise FederationError(f"{len(nodes)} nodes{names} after {self._timeout:g} s, expected {needed}")
            time.sleep(POLL_SECONDS)
        return nodes

    def _request_join(
        self,
        nodes: Mapping[int, str],
        terms: SessionTerms,
        timeout_seconds: float,
        listener: JoinListener | None = None,
    ) -> list[JoinProblem]:
        """Request that nodes join, and return why some cannot."""
        listener = listener or SilentJoinListener()
        names = self._node_names(nodes)
        listener.on_join_requests(names)
        content = RecordDict({"config": self._config(terms=terms.model_dump_json())})
        requests = {str(node): (node, content) for node in nodes}
        replies = exchange_messages(self._grid, requests, MessageType.QUERY, "join", timeout_seconds)
        problems = list[JoinProblem]()
        for reply in (reply for reply in replies if not reply.unexpected):
            self._count_silence(int(reply.sender), is_silent=reply.error == timeout_reason(timeout_seconds))
            problem = self._registry.register(reply, int(reply.sender), nodes)
            client = self._registry.client_of(int(reply.sender)) or nodes[int(reply.sender)]
            self._log.record(reply, ("join", None), client, refusal=problem)
            if problem and client and not problem.startswith(f"{client}: "):
                problem = f"{client}: {problem}"
            if problem:
                problems.append(JoinProblem(problem, reply.may_pass, client or names[int(reply.sender)]))
            listener.on_join_answer(int(reply.sender), client or names[int(reply.sender)], reply.steps, problem)
        return problems

    def _count_silence(self, node: int, *, is_silent: bool) -> None:
        """Store whether a node was silent, and when it is requested again."""
        silences = self._silences[node] = self._silences.get(node, 0) + 1 if is_silent else 0
        self._asked_from[node] = self._admissions + (2 ** min(silences - 1, _MAX_DOUBLINGS) if silences else 1)

    def _node_names(self, nodes: Mapping[int, str]) -> dict[int, str]:
        """Return the name of each node as it is shown until its client has answered."""
        known = {int(node.node_id): str(getattr(node, "client", "")) for node in self._grid.get_nodes()}
        return {node: name or known.get(node) or f"node {node}" for node, name in nodes.items()}

    def _config(self, **values: str) -> ConfigRecord:
        """Return the content of a request, with the heads of ledger and journal unless the values hold heads."""
        nodes = {"nodes": str(self._nodes_file)} if self._nodes_file else {}
        journal = {JOURNAL: head} if (head := self._log.head()) else {}
        return ConfigRecord({**self._shown_heads(newest=1), **journal, **values, **nodes})

    def _shown_heads(self, newest: int, lines: int | None = None) -> dict[str, str]:
        """Return heads of the ledger as a request holds them; nothing where there are none.

        Args:
            newest: number of heads.
            lines: that the ledger has at most in the last of them; None: any.
        """
        heads = self._heads.signed()[:lines][-newest:] if self._heads else ()
        return {HEADS: json.dumps([one.model_dump(mode="json") for one in heads])} if heads else {}

    def _exchange(
        self, requests: Mapping[str, Request], message_type: str, group_id: str, timeout_seconds: float | None = None
    ) -> Generator[Reply]:
        connected = {name: request for name, request in requests.items() if request[0] != NO_NODE}
        for name in requests.keys() - connected.keys():
            yield Reply(name, None, "its node has not rejoined since the session was interrupted")
        timeout = timeout_seconds or self._timeout
        yield from exchange_messages(self._grid, connected, message_type, group_id, timeout, self._share_gpus)


def _join_error(title: str, problems: Sequence[JoinProblem]) -> Zk0Error:
    """Return the error that lists problems, which is transient if all of them may pass."""
    kind = TransientError if problems and all(problem.may_pass for problem in problems) else FederationError
    return kind(list_problems(title, sorted(problem.reason for problem in problems)))

"""Let clients train for a buffered round: it ends with the first updates, and the other clients go on training.

The rule is `zk0.rules.buffered_rounds`. This module sends the requests, receives the answers, and decides which of them
comes next: the one that is there first, the one whose turn it is on a virtual clock, or the one that came next in the
session whose order is repeated. In this order answers enter the spool and the arrival log, from which a killed session
goes on.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zk0.audit.merkle import Receipt
from zk0.errors import FederationError
from zk0.federation.protocol.collect import Federation
from zk0.federation.protocol.exchange import Reply, Request
from zk0.federation.protocol.open_requests import OpenRequests, TimedReply
from zk0.federation.protocol.replies import CollectedUpdates, ResultListener, SilentListener
from zk0.federation.protocol.spool import JoinedWith, Spool
from zk0.records import Arrival, BufferedRound, Record, Refusal, Update
from zk0.rules.buffered_rounds import ClientsInRound, staleness_factor
from zk0.settings.buffer_settings import BufferSettings
from zk0.settings.plans import RoundPlan, SessionTerms
from zk0.storage.record_lines import RecordLines

_TOO_LATE = "the session ended before a step with its update"


@dataclass(frozen=True)
class RoundStart:
    """What a client is sent that begins in a round."""

    plan: RoundPlan
    weights: Path
    """The global weights."""
    sent: Path
    """These weights as they are sent."""


@dataclass(frozen=True)
class BufferedRequest:
    """What a buffered round is made of."""

    number: int
    spool: Path
    """Folder for the updates."""
    settings: BufferSettings
    clients: Sequence[str]
    last: BufferedRound | None
    """Of the round before."""
    start_of: Callable[[str, int], RoundStart]
    """Returns what a client is sent that begins in a round."""
    order: Sequence[Arrival] = ()
    """Arrivals of this round in the session whose order is repeated."""

    @property
    def size(self) -> int:
        """Updates that fill the buffer; in a session that is repeated, those that it had, which may be fewer."""
        return sum(arrival.factor is not None for arrival in self.order) or self.settings.size


class CollectedBuffer(Record):
    """The updates and refusals of a buffered round, and how it came about."""

    updates: CollectedUpdates
    clients: ClientsInRound
    """At the end of the round."""
    waited_seconds: dict[str, float | None]
    """From the arrival of each client's update to the server step; None: unknown, the server was restarted between."""


class BufferedFederation(Federation):
    """A federation whose clients begin with the newest weights while others still train from older ones."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._open_requests = OpenRequests(self._grid, self._timeout, self._share_gpus)

    def train_buffered(self, request: BufferedRequest, listener: ResultListener | None = None) -> CollectedBuffer:
        """Let clients train until the buffer is full; another call for the same round goes on with its arrivals.

        Raises:
            FederationError: the order that is repeated does not fit this session.
        """
        buffer = _Buffer(request, listener or SilentListener())
        logged, seconds = buffer.log.read(), request.settings.simulated_seconds
        for arrival in logged:
            if (left := buffer.repeat(arrival, is_logged=True)) is not None:
                self._receive(buffer, left, is_logged=True)
        for arrival in request.order[len(logged) :]:
            if arrival.factor is None:
                self._open_requests.discard(arrival.client)
            if (left := buffer.repeat(arrival, is_logged=False)) is not None:
                self._receive(buffer, left)
        if len(buffer.clients.accepted) < request.size:
            buffer.clients = buffer.clients.asked_again()
        while not buffer.clients.is_over:
            self._receive(buffer, buffer.clients.next_by_clock(seconds) if seconds else None)
        return buffer.result()

    def send_receipts(self, terms: SessionTerms, receipts: Mapping[str, Sequence[Receipt]]) -> tuple[Refusal, ...]:
        """End all training, and send clients the receipts of their updates; return the refusals."""
        for began, dropped in self._open_requests.discard_all():
            self._log.record(dropped, ("train", began), refusal=_TOO_LATE, in_order=False)
        return super().send_receipts(terms, receipts)

    def _receive(self, buffer: "_Buffer", awaited: str | None, *, is_logged: bool = False) -> None:
        """Send what clients at work have not been sent, and take one answer into the buffer.

        Args:
            buffer: of the round.
            awaited: the client whose answer is taken; None: the first one that is there.
            is_logged: the answer has been in the buffer before, and its file was lost.
        """
        due: dict[str, tuple[Request, int]] = {}
        for one in buffer.clients.at_work:
            if one.began == buffer.request.number:
                buffer.show(one.client)
            if one.client not in self._open_requests:
                start = buffer.request.start_of(one.client, one.began)
                due[one.client] = self._requests([start.plan], start.sent)[one.client], one.began
        self._open_requests.send(due)
        with self._open_requests.next(awaited) as timed:
            self._take(buffer, timed, is_logged)
        for reply in self._open_requests.take_unexpected():
            refused = buffer.refuse(reply)
            self._log.record(reply, ("train", buffer.request.number), refusal=refused.reason, in_order=False)

    def _take(self, buffer: "_Buffer", timed: TimedReply, is_logged: bool) -> None:
        """Take an answer into the buffer, or refuse it."""
        client = timed.reply.sender
        began, member = buffer.clients.began(client), self._registry.members.get(client)
        found = buffer.receive(timed, None if member is None else JoinedWith.of(member), is_logged)
        if isinstance(found, Refusal):
            self._log.record(timed.reply, ("train", began), refusal=found.reason, in_order=False)
        else:
            self._log.record(timed.reply, ("train", began), update=found, in_order=False)
        buffer.show(client)
        buffer.listener.on_result(found)


class _Buffer:
    """The answers of one round in their order: in the spool, in the arrival log, and in memory.

    Args:
        request: what the round is made of.
        listener: called before each request and after each answer.
    """

    def __init__(self, request: BufferedRequest, listener: ResultListener) -> None:
        self.request, self.listener = request, listener
        request.spool.mkdir(parents=True, exist_ok=True)
        self.log = RecordLines(request.spool / "arrivals.jsonl", Arrival)
        """One line for each answer, written when the spool holds it."""
        settings = request.settings.model_copy(update={"size": request.size})
        self.clients = ClientsInRound.begin(request.number, request.clients, request.last, settings)
        self._shown: set[str] = set()
        self._updates: dict[str, Update] = {}
        self._norms: dict[str, float] = {}
        self._refusals: list[Refusal] = []
        self._arrived_at: dict[str, float | None] = {}

    def show(self, client: str) -> None:
        """Tell the listener, once, of a client that begins in this round, or that has answered from an earlier one.

        Not of those that go on: there may be many more of them than updates in a buffer.
        """
        if client not in self._shown:
            self._shown.add(client)
            self.listener.on_request(client)

    def repeat(self, arrival: Arrival, *, is_logged: bool) -> str | None:
        """Take an arrival of before again, in its turn, or return the client whose answer must be received for it.

        Args:
            arrival: of an earlier attempt at this round, or of the session whose order is repeated.
            is_logged: it is of an earlier attempt.

        Raises:
            FederationError: no such client is at work.
        """
        client = arrival.client
        if client not in {one.client for one in self.clients.at_work}:
            self.clients = self.clients.asked_again()
        if (client, arrival.began) not in {(one.client, one.began) for one in self.clients.at_work}:
            raise FederationError(
                f"round {self.request.number}: the order of arrivals has {client}, which began in round "
                f"{arrival.began}; expected one of {', '.join(one.client for one in self.clients.at_work)}"
            )
        if arrival.factor is not None:
            start = self.request.start_of(client, arrival.began)
            spool = self._spool(start)
            if not is_logged or (update := spool.load(start.plan)) is None:
                return client
            self._accept(update, spool.delta_norms[client])
            self.listener.on_reused(update)
        elif not is_logged:
            refusal = Spool(self.request.spool, Path()).refuse(client, "refused in the session whose order is repeated")
            self._refusals.append(refusal)
            self.log.append(arrival)
        self._move(arrival)
        self._arrived_at[client] = self.clients.clock if self.request.settings.simulated_seconds else None
        return None

    def receive(self, timed: TimedReply, joined: JoinedWith | None, is_logged: bool) -> Update | Refusal:
        """Take the answer of a client at work into the buffer, or refuse it.

        Args:
            timed: the answer.
            joined: of the client's joining answer; None: not known.
            is_logged: the arrival log has the answer already.
        """
        client, settings = timed.reply.sender, self.request.settings
        began, seconds = self.clients.began(client), settings.simulated_seconds
        start = self.request.start_of(client, began)
        spool = self._spool(start, joined)
        if timed.reply.content is None:
            found: Update | Refusal = spool.refuse(client, timed.reply.error)
        elif problem := self.clients.staleness_problem(client, settings):
            found = spool.refuse(client, problem)
        else:
            found = spool.receive(timed.reply.content, start.plan, self._updates.keys())
        factor = None if isinstance(found, Refusal) else staleness_factor(self.request.number - began, settings)
        arrival = Arrival(client=client, began=began, factor=factor, seconds=seconds.get(client, timed.seconds))
        if not is_logged:
            self.log.append(arrival)
        self._move(arrival)
        if isinstance(found, Refusal):
            self._refusals.append(found)
        else:
            self._accept(found, spool.delta_norms[client])
            self._arrived_at[client] = self._now()
        return found

    def refuse(self, reply: Reply) -> Refusal:
        """Refuse an answer to no request that is open; it is no arrival."""
        refusal = Spool(self.request.spool, Path()).refuse(reply.sender, reply.error)
        self._refusals.append(refusal)
        return refusal

    def result(self) -> CollectedBuffer:
        """Return what the buffer holds."""
        updates = CollectedUpdates(
            updates=tuple(self._updates[name] for name in sorted(self._updates)),
            refusals=tuple(sorted(self._refusals, key=lambda refusal: refusal.client)),
            all_refusals=Spool(self.request.spool, Path()).refusals(),
            delta_norms={name: self._norms[name] for name in sorted(self._updates)},
        )
        now = self._now()
        waited = {name: None if at is None else now - at for name, at in self._arrived_at.items()}
        return CollectedBuffer(updates=updates, clients=self.clients, waited_seconds=waited)

    def _now(self) -> float:
        """Seconds of the virtual clock, or else of this machine's."""
        return self.clients.clock if self.request.settings.simulated_seconds else time.monotonic()

    def _spool(self, start: RoundStart, joined: JoinedWith | None = None) -> Spool:
        return Spool(self.request.spool, start.weights, {start.plan.client: joined} if joined else None)

    def _move(self, arrival: Arrival) -> None:
        self.clients = self.clients.with_arrival(arrival, self.request.settings.simulated_seconds)

    def _accept(self, update: Update, norm: float) -> None:
        self._updates[update.client], self._norms[update.client] = update, norm

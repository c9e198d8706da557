"""Buffered asynchronous rounds (FedBuff, arXiv 2106.06639): who trains from which weights, and what an update counts.

A round is a server step. It begins when the clients that are ready are sent the newest weights, and ends when the
buffer holds `buffer.size` updates, each of which may have begun in an earlier round. A client is sent weights at most
once in a round and has at most one update in a buffer: after its update it is ready again in the next round.

Everything here is a function of the last round's record and of the arrivals since then, in their order. So a session
that resumes, or that repeats the order of another one, sends every client the same weights.
"""

from collections.abc import Mapping, Sequence
from typing import Self

from zk0.records import Arrival, BufferedRound, ClientAtWork, Record
from zk0.settings.buffer_settings import BufferSettings


def staleness_factor(staleness: int, settings: BufferSettings) -> float:
    """Return the factor for the delta of an update that began `staleness` server steps ago.

    The functions are those of FedAsync (arXiv 1903.03934, section 5.2). As in FedBuff, deltas are scaled before they
    are averaged, so that a buffer of late updates makes a shorter step.

    >>> [staleness_factor(s, BufferSettings()) for s in (0, 3, 8)]
    [1.0, 0.5, 0.3333333333333333]
    >>> staleness_factor(8, BufferSettings(staleness="constant"))
    1.0
    """
    return 1.0 if settings.staleness == "constant" else float((1 + staleness) ** -settings.staleness_exponent)


class ClientsInRound(Record):
    """What each client does at one moment of a round; every method returns the next moment."""

    round: int
    size: int
    """Updates that end the round."""
    concurrency: int | None
    at_work: tuple[ClientAtWork, ...]
    """In the order in which they were sent weights."""
    ready: tuple[str, ...]
    """Are sent the round's weights as soon as fewer than `concurrency` clients are at work, the first one first."""
    arrivals: tuple[Arrival, ...] = ()
    clock: float = 0.0
    """Seconds of the virtual clock; 0 without one."""

    @classmethod
    def begin(cls, number: int, clients: Sequence[str], last: BufferedRound | None, settings: BufferSettings) -> Self:
        """Return the beginning of a round: clients that are ready have been sent its weights.

        Args:
            number: the round.
            clients: all members.
            last: the record of the round before; None in the first round.
            settings: of the buffer.
        """
        at_work = last.at_work if last else ()
        busy = {one.client for one in at_work}
        known = [*(last.ready if last else ()), *clients]
        ready = tuple(dict.fromkeys(name for name in known if name not in busy))
        clock = last.clock if last else 0.0
        new = cls(
            round=number,
            size=settings.size,
            concurrency=settings.concurrency,
            at_work=at_work,
            ready=ready,
            clock=clock,
        )
        return new._sent()

    @property
    def accepted(self) -> tuple[Arrival, ...]:
        """The updates in the buffer, in the order of their arrival."""
        return tuple(arrival for arrival in self.arrivals if arrival.factor is not None)

    @property
    def is_over(self) -> bool:
        """Whether the buffer is full, or no client is at work that could fill it."""
        return len(self.accepted) >= self.size or not self.at_work

    def began(self, client: str) -> int:
        """Return the round in which a client at work was sent its weights."""
        return next(one.began for one in self.at_work if one.client == client)

    def staleness_problem(self, client: str, settings: BufferSettings) -> str | None:
        """Return why the update of a client at work is too old for the buffer, or None."""
        old = sum(self.round - one.began > settings.max_staleness for one in self.accepted)
        staleness = self.round - self.began(client)
        if staleness <= settings.max_staleness or old < settings.max_stale_updates:
            return None
        return (
            f"its update began {staleness} server steps ago, expected at most {settings.max_staleness} "
            "(buffer.max_staleness); it gets the newest weights"
        )

    def next_by_clock(self, seconds: Mapping[str, float]) -> str:
        """Return the client whose answer is the next one on the virtual clock; of several, the one that began first.

        Args:
            seconds: that the training of each client takes.
        """
        return min(self.at_work, key=lambda one: one.sent_at + seconds[one.client]).client

    def with_arrival(self, arrival: Arrival, seconds: Mapping[str, float]) -> Self:
        """Return the moment after an answer: another client may be sent the round's weights.

        A client whose answer from older weights was refused is ready at once.

        Args:
            arrival: the answer; that of a client that is not at work is of one that was asked once more.
            seconds: of the virtual clock; empty without one.
        """
        sent_at = next((one.sent_at for one in self.at_work if one.client == arrival.client), self.clock)
        ready_at_once = arrival.factor is None and arrival.began < self.round
        moved = self.model_copy(
            update={
                "at_work": tuple(one for one in self.at_work if one.client != arrival.client),
                "ready": (*self.ready, *[arrival.client] * ready_at_once),
                "arrivals": (*self.arrivals, arrival),
                "clock": max(self.clock, sent_at + seconds[arrival.client]) if seconds else 0.0,
            }
        )
        return moved._sent()

    def asked_again(self) -> Self:
        """Return the beginning of another attempt: clients whose answers were refused are sent the weights again."""
        busy = {one.client for one in self.accepted} | {one.client for one in self.at_work}
        refused = dict.fromkeys(one.client for one in self.arrivals if one.client not in busy)
        return self.model_copy(update={"ready": tuple(dict.fromkeys((*self.ready, *refused)))})._sent()

    def record(self, accepted: Mapping[str, float | None]) -> BufferedRound:
        """Return what the ledger holds of the round.

        Args:
            accepted: clients whose updates were averaged -> seconds from the arrival to the server step.
        """
        arrivals = tuple(_settled(one, accepted) for one in self.arrivals)
        answered = dict.fromkeys(one.client for one in arrivals)
        busy = {one.client for one in self.at_work}
        ready = tuple(dict.fromkeys((*self.ready, *(name for name in answered if name not in busy))))
        return BufferedRound(arrivals=arrivals, at_work=self.at_work, ready=ready, clock=self.clock)

    def _sent(self) -> Self:
        """Return the moment at which clients that are ready have been sent the round's weights."""
        places = len(self.ready) if self.concurrency is None else max(0, self.concurrency - len(self.at_work))
        sent = [ClientAtWork(client=n, began=self.round, sent_at=self.clock) for n in self.ready[:places]]
        return self.model_copy(update={"at_work": (*self.at_work, *sent), "ready": self.ready[places:]})


def _settled(arrival: Arrival, accepted: Mapping[str, float | None]) -> Arrival:
    """Return the arrival with its waiting time, or as refused where its update was quarantined."""
    if arrival.factor is None:
        return arrival
    if arrival.client not in accepted:
        return arrival.model_copy(update={"factor": None})
    return arrival.model_copy(update={"waited_seconds": accepted[arrival.client]})

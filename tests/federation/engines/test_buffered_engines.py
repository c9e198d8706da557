"""Buffered rounds on every engine: the same order of arrivals ends with the same digests; a fault costs one update."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from zk0.settings.buffer_settings import BufferSettings
from zk0.settings.session import Session

CLOCK = BufferSettings(size=2, simulated_seconds={"a": 1.0, "b": 2.0, "c": 3.0})
"""Arrivals: a and b; c, which began in round 1, and a; b, which began in round 2, and a."""


class BufferedDriver:
    """Runs the buffered rounds of a session step by step."""

    def __init__(self, driven: Any, federation: Any, settings: BufferSettings) -> None:
        self.driven, self.federation, self.settings = driven, federation, settings
        self.plans: dict[tuple[str, int], Any] = {}
        self.weights: dict[int, Path] = {}
        self.records: list[Any] = []
        driven.begin(federation)

    def collect(self, listener: Any = None) -> Any:
        """Collect the next round."""
        from zk0.federation.protocol.buffered_federation import BufferedRequest, RoundStart

        number = self.driven.history[-1].round + 1
        self.weights[number] = Path(self.driven.history[-1].path)
        self.plans |= {(plan.client, number): plan for plan in self.driven.plans()}

        def start_of(client: str, began: int) -> RoundStart:
            return RoundStart(self.plans[client, began], self.weights[began], self.weights[began])

        last = self.records[-1] if self.records else None
        request = BufferedRequest(number, self.driven.spool(), self.settings, tuple("abc"), last, start_of)
        return self.federation.train_buffered(request, listener)

    def step(self, found: Any) -> None:
        """Make the server step from what was collected."""
        from zk0.aggregation.aggregate import aggregate
        from zk0.aggregation.reduction_plan import AggregationTerms
        from zk0.aggregation.stale_updates import StaleStart
        from zk0.records import Checkpoint

        self.records.append(found.clients.record(found.waited_seconds))
        number = len(self.records)
        factors = {one.client: (one.began, one.factor) for one in self.records[-1].arrivals if one.factor}
        stale = {c: StaleStart(self.weights[began], f) for c, (began, f) in factors.items() if began < number}
        target = self.driven.folder / f"round-{number:03d}" / "weights.safetensors"
        made = aggregate(found.updates.updates, self.weights[number], target, AggregationTerms(stale=stale))
        self.driven._finish_round(Checkpoint(round=number, path=str(target), digest=made.digest, bytes=made.bytes))


class Requested:
    """A listener that keeps the names of clients."""

    def __init__(self) -> None:
        self.requested: list[str] = []
        self.reused: list[str] = []

    def on_request(self, client: str) -> None:
        self.requested.append(client)

    def on_reused(self, update: Any) -> None:
        self.reused.append(update.client)

    def on_result(self, found: Any) -> None: ...


def digests(driven: Any, federation: Any) -> list[str]:
    """The digests of three rounds on the virtual clock."""
    session = BufferedDriver(driven, federation, CLOCK)
    for _ in range(3):
        session.step(session.collect())
    orders = [[(one.client, one.began) for one in record.arrivals] for record in session.records]
    assert orders == [[("a", 1), ("b", 1)], [("c", 1), ("a", 2)], [("b", 2), ("a", 3)]]
    assert [one.factor for one in session.records[1].arrivals] == [2**-0.5, 1.0]
    return [checkpoint.digest for checkpoint in driven.history]


@pytest.fixture(scope="module")
def in_this_process(
    session_of: Callable[..., Session], drive: type, tmp_path_factory: pytest.TempPathFactory
) -> list[str]:
    from zk0.federation.open import open_federation

    folder, session = tmp_path_factory.mktemp("here"), session_of(federation={"mode": "buffered"})
    with open_federation(session, "mini", folder) as federation:
        return digests(drive(session, folder), federation)


def buffered_on(engine: Any) -> Any:
    """Return a federation for buffered rounds on an engine."""
    from zk0.federation.protocol.buffered_federation import BufferedFederation

    return BufferedFederation(engine.grid, ("a", "b", "c"), 240, engine.nodes_file)


def test_every_engine_ends_with_the_same_digests(
    engine: Any, drive: type, tmp_path: Path, in_this_process: list[str]
) -> None:
    assert digests(drive(engine.session, tmp_path, "buffered"), buffered_on(engine)) == in_this_process


def test_a_buffer_of_all_clients_has_the_weights_of_synchronous_rounds(
    session_of: Callable[..., Session], drive: type, tmp_path: Path
) -> None:
    from zk0.federation.open import open_federation

    ends = []
    for mode in ("synchronous", "buffered"):
        session = session_of(federation={"mode": mode})
        with open_federation(session, mode, tmp_path / mode) as federation:
            driven = drive(session, tmp_path / mode, mode)
            if mode == "buffered":
                rounds = BufferedDriver(driven, federation, BufferSettings(size=3))
                for _ in range(2):
                    rounds.step(rounds.collect())
            else:
                driven.begin(federation)
                for _ in range(2):
                    driven.average(driven.train(federation).updates)
        ends.append([checkpoint.digest for checkpoint in driven.history])
    assert ends[0] == ends[1]
    assert len(ends[0]) == 3


def test_a_worker_that_dies_costs_one_update(local_engine: Any, drive: type, tmp_path: Path) -> None:
    """Its client is refused and asked again, in another attempt at the round or in the next round."""
    training = local_engine.session.training.model_copy(update={"local_steps": 40})  # b is at work when it is killed
    longer = local_engine.session.model_copy(update={"training": training})
    session = BufferedDriver(drive(longer, tmp_path, "dies"), buffered_on(local_engine), BufferSettings(size=3))
    killed: list[int] = []

    def kill_b(client: str, number: int, step: int, steps: int, work: str) -> None:
        if client == "b" and work == "train" and not killed:
            killed.append(local_engine.worker())
            os.kill(killed[0], signal.SIGKILL)

    local_engine.listeners.append(kill_b)
    found = session.collect()
    local_engine.listeners.remove(kill_b)
    assert [update.client for update in found.updates.updates] == ["a", "c"]
    assert [refusal.client for refusal in found.updates.refusals] == ["b"]

    again = Requested()
    found = session.collect(again)
    assert (again.requested, sorted(again.reused)) == (["b"], ["a", "c"])
    assert [update.client for update in found.updates.updates] == ["a", "b", "c"]
    session.step(found)
    assert [(one.client, one.factor) for one in session.records[0].arrivals][-1] == ("b", 1.0)
    assert len(session.records[0].arrivals) == 4

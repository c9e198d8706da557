"""Buffered rounds on every engine: the same order of arrivals ends with the same digests; a fault costs one update."""

import os
import shutil
import signal
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest

from zk0.audit.ledger import Ledger
from zk0.audit.merkle import client_receipts, merkle_root, update_leaf
from zk0.errors import RunEnded, ServerUnavailable
from zk0.federation.engines.local import LocalGrid
from zk0.records import Arrival, RoundRecord
from zk0.settings.buffer_settings import BufferSettings
from zk0.settings.plans import session_terms
from zk0.settings.session import Session

CLOCK = BufferSettings(size=2, simulated_seconds={"a": 1.0, "b": 2.0, "c": 3.0})
"""Arrivals: a and b; c, which began in round 1, and a; b, which began in round 2, and a."""
ORDERS = [[("a", 1), ("b", 1)], [("c", 1), ("a", 2)], [("b", 2), ("a", 3)]]
FINISHED: dict[str, Any] = {"seconds": 1, "finished_at": ""}


class BufferedDriver:
    """Runs the buffered rounds of a session step by step."""

    def __init__(self, driven: Any, federation: Any, settings: BufferSettings, names: Sequence[str] = "abc") -> None:
        self.driven, self.federation, self.settings, self.names = driven, federation, settings, tuple(names)
        self.plans: dict[tuple[str, int], Any] = {}
        self.weights: dict[int, Path] = {}
        self.records: list[Any] = []
        self.order: Sequence[Sequence[Arrival]] = ()
        """Arrivals of each round, where they are repeated."""
        driven.begin(federation)

    def collect(self, listener: Any = None) -> Any:
        """Collect the next round."""
        from zk0.federation.protocol.buffered_federation import BufferedRequest, RoundStart

        number = self.driven.history[-1].round + 1
        self.weights[number] = Path(self.driven.history[-1].path)
        last = self.records[-1] if self.records else None
        needed = {(one.client, one.began) for one in last.at_work} if last else set()
        self.plans = {key: plan for key, plan in self.plans.items() if key in needed or key[1] == number}
        self.plans |= {(plan.client, number): plan for plan in self.driven.plans(buffered=True)}

        def start_of(client: str, began: int) -> RoundStart:
            return RoundStart(self.plans[client, began], self.weights[began], self.weights[began])

        order = self.order[number - 1] if self.order else ()
        request = BufferedRequest(number, self.driven.spool(), self.settings, self.names, last, start_of, order)
        return self.federation.train_buffered(request, listener)

    def step(self, found: Any, without: str = "") -> None:
        """Aggregate what was collected, `without` the quarantined update of one client."""
        from zk0.aggregation.aggregate import aggregate
        from zk0.aggregation.reduction_plan import AggregationTerms
        from zk0.aggregation.stale_updates import StaleStart
        from zk0.records import Checkpoint

        updates = tuple(update for update in found.updates.updates if update.client != without)
        waited = {update.client: found.waited_seconds[update.client] for update in updates}
        self.records.append(found.clients.record(waited))
        number = len(self.records)
        factors = {one.client: (one.began, one.factor) for one in self.records[-1].arrivals if one.factor}
        stale = {c: StaleStart(self.weights[began], f) for c, (began, f) in factors.items() if began < number}
        target = self.driven.folder / f"round-{number:03d}" / "weights.safetensors"
        made = aggregate(updates, self.weights[number], target, AggregationTerms(stale=stale))
        checkpoint = Checkpoint(round=number, path=str(target), digest=made.digest, bytes=made.bytes)
        self.driven.history.append(checkpoint)
        root = merkle_root([update_leaf(update) for update in updates])
        record = RoundRecord(round=number, checkpoint=checkpoint, updates=updates, updates_root=root, **FINISHED)
        Ledger(self.driven.folder / "ledger.jsonl").append(record)

    def orders(self) -> list[list[tuple[str, int]]]:
        """Return client and round of each arrival, by round."""
        return [[(one.client, one.began) for one in record.arrivals] for record in self.records]


class Requested:
    """A listener that keeps the names of clients, and does something before each request."""

    def __init__(self, act: Callable[[str], None] = lambda client: None) -> None:
        self.act = act
        self.requested: list[str] = []
        self.reused: list[str] = []

    def on_request(self, client: str) -> None:
        self.requested.append(client)
        self.act(client)

    def on_reused(self, update: Any) -> None:
        self.reused.append(update.client)

    def on_result(self, found: Any) -> None: ...


def digests(driven: Any, federation: Any) -> list[str]:
    """The digests of three rounds on the virtual clock."""
    session = BufferedDriver(driven, federation, CLOCK)
    for _ in range(3):
        session.step(session.collect())
    assert session.orders() == ORDERS
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


def test_a_repeated_order_has_the_refusals_of_all_attempts(
    session_of: Callable[..., Session], drive: type, tmp_path: Path
) -> None:
    """First all clients fail, then one; in the end the update of b is quarantined, and the others are aggregated."""
    from zk0.federation.open import open_federation

    session, runs = session_of(federation={"mode": "buffered"}), []
    for name in ("original", "repeated"):
        with open_federation(session, name, tmp_path / name) as federation:
            driven = drive(session, tmp_path / name)
            rounds = BufferedDriver(driven, federation, BufferSettings(size=2))
            if name == "original":
                for broken in ("abc", "a"):
                    files = [tmp_path / name / "clients" / client / "sessions" for client in broken]
                    for file in files:
                        shutil.rmtree(file, ignore_errors=True)
                        file.touch()
                    found = rounds.collect()
                    for file in files:
                        file.unlink()
            else:
                rounds.order = [record.arrivals for record in runs[0].records]
                found = rounds.collect()
            rounds.step(found, without="b")
            rounds.step(rounds.collect())
            runs.append(rounds)
    original, again = runs
    assert [[(one.client, one.factor) for one in record.arrivals] for record in original.records] == [
        [("a", None), ("b", None), ("c", None), ("a", None), ("b", None), ("c", 1.0)],
        [("a", 1.0), ("b", 1.0)],
    ]
    assert again.orders() == original.orders()
    assert [record.at_work for record in again.records] == [record.at_work for record in original.records]
    assert [record.ready for record in again.records] == [record.ready for record in original.records]
    assert [one.digest for one in again.driven.history] == [one.digest for one in original.driven.history]


class LosingGrid(LocalGrid):
    """A local engine that brings one answer at a time, is away once, and has forgotten then what it was sent before."""

    away, lost = False, frozenset[str]()

    def push_messages(self, messages: Iterable[Any]) -> list[str]:
        if self.away:
            self.away, self.lost = False, frozenset(self._open)
            raise ServerUnavailable("away")
        return super().push_messages(messages)

    def pull_messages(self, ids: Iterable[str]) -> list[Any]:
        if self.lost.intersection(ids):
            raise RunEnded("forgotten")
        return super().pull_messages([*ids][:1])


def test_an_engine_that_was_away_costs_one_attempt(
    session_of: Callable[..., Session], nodes_of: Callable[..., Any], drive: type, tmp_path: Path
) -> None:
    """All that was open is sent again with the same weights: also to b and c, which began in the round before."""
    from zk0.federation.protocol.buffered_federation import BufferedFederation

    session = session_of()
    with LosingGrid(nodes_of(session, tmp_path), 0, tmp_path / "server") as grid:
        rounds = BufferedDriver(
            drive(session, tmp_path), BufferedFederation(grid, ("a", "b", "c"), 60), BufferSettings(size=1)
        )
        rounds.step(rounds.collect())
        grid.away = True
        with pytest.raises(ServerUnavailable):
            rounds.collect()
        assert len(grid.lost) == 2
        rounds.step(rounds.collect())
    assert rounds.orders() == [[("a", 1)], [("b", 1)]]


@pytest.mark.slow
@pytest.mark.full_size
@pytest.mark.timeout(900)
def test_a_thousand_clients(session_of: Callable[..., Session], drive: type, tmp_path: Path) -> None:
    """Twenty train at a time; what is sent, listened to and kept in memory follows the updates, not the clients."""
    from zk0.diagnostics import resident_bytes
    from zk0.federation.open import open_federation

    names, size, rounds = [f"c{number:03d}" for number in range(1000)], 10, 6
    few = session_of(federation={"mode": "buffered"})
    clients = tuple(few.clients[0].model_copy(update={"name": name}) for name in names)
    session = few.model_copy(update={"clients": clients})
    settings, listener, resident = BufferSettings(size=size, concurrency=20), Requested(), []
    with open_federation(session, "thousand", tmp_path) as federation:
        driven = BufferedDriver(drive(session, tmp_path, "thousand"), federation, settings, names)
        for _ in range(rounds):
            driven.step(driven.collect(listener))
            resident.append(resident_bytes())
            assert len(driven.records[-1].at_work) == 20
    answered = [client for arrivals in driven.orders() for client, _ in arrivals]
    assert answered == names[: size * rounds], "the one that has waited longest is next"
    assert len(listener.requested) <= 2 * len(answered) + 20
    assert max(resident[2:]) - resident[1] < 20e6


def buffered_on_nodes(engine: Any, folder: Path, timeout_seconds: float = 240) -> Any:
    """Return a federation for buffered rounds on SuperNodes, with the server's journal in a folder."""
    from zk0.federation.protocol.buffered_federation import BufferedFederation
    from zk0.federation.protocol.received_log import ReceivedLog

    log = ReceivedLog(folder / "accepted.jsonl", "buffered-nodes")
    return BufferedFederation(engine.grid, ("a", "b", "c"), timeout_seconds, None, log=log, heads=engine.heads)


@pytest.fixture(scope="module")
def rounds(deployment_engine: Any, drive: type, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Three rounds on SuperNodes; one is killed when it is to train, and the session is resumed while it does.

    Between the rounds clients evaluate: the requests to train that are still open come late, and their answers too.
    """
    engine, folder = deployment_engine, tmp_path_factory.mktemp("nodes")
    driven = drive(engine.session, folder, "buffered-nodes")
    engine.show_ledger(driven)
    session = BufferedDriver(driven, buffered_on_nodes(engine, folder), CLOCK)

    def kill(client: str) -> None:
        if client == "c":
            os.kill(engine.deployment.pid(engine.deployment.nodes["c"], "supernode"), signal.SIGKILL)

    session.step(session.collect(Requested(kill)))
    assert driven.evaluate(session.federation).refusals == ()
    session.federation = buffered_on_nodes(engine, folder)  # as after a kill, when c is at work
    session.federation.join(session_terms(driven.session, driven.name))
    for _ in range(2):
        session.step(session.collect())
        assert driven.evaluate(session.federation).refusals == ()
    history = Ledger(folder / "ledger.jsonl").read()
    receipts = {client: client_receipts(history, client) for client in "abc"}
    assert session.federation.send_receipts(session_terms(driven.session, driven.name), receipts) == ()
    return session


@pytest.mark.slow
@pytest.mark.timeout(600)
class TestNodes:
    def test_they_end_with_the_digests_of_one_process(self, rounds: Any, in_this_process: list[str]) -> None:
        assert rounds.orders() == ORDERS
        assert [checkpoint.digest for checkpoint in rounds.driven.history] == in_this_process

    def test_receipts_name_the_round_that_lists_an_update(self, rounds: Any, deployment_engine: Any) -> None:
        from zk0.federation.protocol.receipts import audited_messages

        found = {}
        for client, node in deployment_engine.deployment.nodes.items():
            ours = [one for one in audited_messages(node.scratch) if one.sent.to == rounds.driven.name and one.receipt]
            assert all(one.root_signed for one in ours)
            found[client] = {(one.receipt.round, one.receipt.ledger_round) for one in ours if one.receipt}
        assert found == {"a": {(1, 1), (2, 2), (3, 3)}, "b": {(1, 1), (2, 3)}, "c": {(1, 2)}}

    def test_no_head_contradicts_another(self, rounds: Any, deployment_engine: Any) -> None:
        """The journals have the same answers, in another order; what was dropped at the end is refused.

        The server has no answer of c to the request of the killed session, which was sent again.
        """
        from zk0.audit.journal import ReceivedJournal, SentJournal
        from zk0.audit.journal_comparison import compare_journals
        from zk0.federation.protocol.heads_audit import audited_heads
        from zk0.federation.protocol.shown_journals import (
            check_client_journal,
            client_heads,
            client_journal_problems,
            server_journal_problem,
        )

        received = ReceivedJournal(rounds.driven.folder / "accepted.jsonl").read()
        assert client_journal_problems(received) == {}
        late = [one.client for one in received if one.refusal == "the session ended before a step with its update"]
        assert late == ["c"]
        for client, node in deployment_engine.deployment.nodes.items():
            journal = SentJournal(node.scratch / "sent.jsonl")
            sent = [one for one in journal.read() if one.to == rounds.driven.name]
            assert server_journal_problem(sent) == ""
            check_client_journal(journal, client_heads(received)[client])
            found = compare_journals(client, sent, received)
            assert found.missing_at_client == ()
            killed = [one for one in found.missing_at_server if one.startswith("train of round 1 of session")]
            assert (len(found.missing_at_server), len(killed)) == ((1, 1) if client == "c" else (0, 0))
            heads = {one.session: one for one in audited_heads(node.scratch, node.read_kit().ledger_key)}
            shown = heads[rounds.driven.name]
            assert (shown.problem, shown.other_weights, shown.without_head) == ("", 0, 0)
        lines = [one.client_journal.lines for one in received if one.client == "b" and one.client_journal]
        assert lines != sorted(lines)  # its answer of round 2 enters round 3, after its evaluation of round 2


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_node_that_hangs_is_refused_and_the_others_go_on(
    deployment_engine: Any, drive: type, tmp_path: Path, workers: Callable[[], dict[int, int]]
) -> None:
    """Its worker stops before its first round, for longer than a request may take, and goes on then."""
    engine = deployment_engine
    driven = drive(engine.session, tmp_path, "buffered-hangs")
    engine.show_ledger(driven)
    rounds = BufferedDriver(driven, buffered_on_nodes(engine, tmp_path, 40), BufferSettings(size=2))
    agent, parents = engine.deployment.pid(engine.deployment.nodes["c"], "agent"), workers()
    (worker,) = [pid for pid, parent in parents.items() if parents.get(parent) == agent]
    os.kill(worker, signal.SIGSTOP)
    refused: list[Any] = []
    while not refused:
        found = rounds.collect()
        assert [update.client for update in found.updates.updates] == ["a", "b"]
        rounds.step(found)
        refused = [(one.client, one.reason) for one in found.updates.refusals]
        assert [one.client for one in rounds.records[-1].at_work] == ["c"]
    os.kill(worker, signal.SIGCONT)
    assert refused == [("c", "no answer within 40 s")]
    number = len(rounds.records)
    assert number > 2, "server steps without c"
    assert [(one.began, one.factor) for one in rounds.records[-1].arrivals if one.client == "c"] == [(1, None)]
    while not any(one.client == "c" and one.factor for one in rounds.records[-1].arrivals):
        rounds.step(rounds.collect())
    assert ("c", number) in rounds.orders()[-1], "it was sent the weights of the round in which it was refused"

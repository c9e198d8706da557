"""Buffered rounds: who is sent which weights, which updates are in the buffer, and how much they count."""

from collections.abc import Sequence

import pytest

from zk0.records import Arrival, BufferedRound, ClientAtWork
from zk0.rules.buffered_rounds import ClientsInRound, staleness_factor
from zk0.settings.buffer_settings import BufferSettings

CLIENTS = ("a", "b", "c", "d")
SPEEDS = {"a": 1.0, "b": 2.0, "c": 4.0, "d": 10.0}


def arrival(client: str, began: int, factor: float | None = 1.0) -> Arrival:
    return Arrival(client=client, began=began, factor=factor)


def begin(settings: BufferSettings, number: int = 1, last: BufferedRound | None = None) -> ClientsInRound:
    return ClientsInRound.begin(number, CLIENTS, last, settings)


def names(at_work: Sequence[ClientAtWork]) -> list[tuple[str, int]]:
    return [(one.client, one.began) for one in at_work]


def run(settings: BufferSettings, rounds: int) -> list[BufferedRound]:
    """The rounds of a session whose clients answer in the order of their speeds."""
    records: list[BufferedRound] = []
    for number in range(1, rounds + 1):
        now = begin(settings, number, records[-1] if records else None)
        while not now.is_over:
            client = now.next_by_clock(SPEEDS)
            factor = staleness_factor(number - now.began(client), settings)
            now = now.with_arrival(arrival(client, now.began(client), factor), SPEEDS)
        records.append(now.record(dict.fromkeys(CLIENTS, 0.0)))
    return records


@pytest.mark.parametrize(
    ("settings", "factors"),
    [
        (BufferSettings(), [1.0, 2**-0.5, 3**-0.5]),
        (BufferSettings(staleness_exponent=1.0), [1.0, 1 / 2, 1 / 3]),
        (BufferSettings(staleness="constant"), [1.0, 1.0, 1.0]),
    ],
)
def test_staleness_factor(settings: BufferSettings, factors: list[float]) -> None:
    assert [staleness_factor(s, settings) for s in range(3)] == pytest.approx(factors, rel=1e-15)


def test_a_buffer_of_all_clients_is_a_synchronous_round() -> None:
    for number, record in enumerate(run(BufferSettings(size=4), rounds=3), start=1):
        assert [(a.client, a.began, a.factor) for a in record.arrivals] == [(c, number, 1.0) for c in CLIENTS]
        assert record.at_work == ()
        assert record.clock == 10.0 * number


def test_the_fast_clients_do_not_wait_for_the_slow_ones() -> None:
    """Worked out by hand: a takes 1 s, b 2 s, c 4 s, d 10 s; the server steps after two updates."""
    records = run(BufferSettings(size=2), rounds=6)
    assert [[(a.client, a.began) for a in record.arrivals] for record in records] == [
        [("a", 1), ("b", 1)],  # 1 s, 2 s
        [("a", 2), ("c", 1)],  # 3 s, 4 s; b, which began at 2 s, is there at 4 s too, but began later than c
        [("b", 2), ("a", 3)],  # 4 s, 5 s
        [("a", 4), ("b", 4)],  # 6 s, 7 s
        [("c", 3), ("a", 5)],  # 8 s, 8 s
        [("b", 5), ("a", 6)],  # 9 s, 9 s
    ]
    assert [record.clock for record in records] == [2.0, 4.0, 5.0, 7.0, 8.0, 9.0]
    assert [a.factor for a in records[4].arrivals] == pytest.approx([3**-0.5, 1.0])
    assert names(records[-1].at_work) == [("d", 1), ("c", 6)]
    assert records[-1].ready == ("b", "a")


def test_a_client_waits_for_newer_weights_after_its_update() -> None:
    now = begin(BufferSettings(size=3)).with_arrival(arrival("a", 1), {})
    assert names(now.at_work) == [("b", 1), ("c", 1), ("d", 1)]
    record = now.with_arrival(arrival("c", 1), {}).with_arrival(arrival("b", 1), {}).record({"a": 2.0, "b": 0, "c": 1})
    assert [one.waited_seconds for one in record.arrivals] == [2.0, 1.0, 0.0]
    assert record.ready == ("a", "c", "b")
    assert names(begin(BufferSettings(size=3), 2, record).at_work) == [("d", 1), ("a", 2), ("c", 2), ("b", 2)]


def test_at_most_so_many_clients_train_at_a_time() -> None:
    settings = BufferSettings(size=3, concurrency=2)
    now = begin(settings)
    assert (names(now.at_work), now.ready) == ([("a", 1), ("b", 1)], ("c", "d"))
    now = now.with_arrival(arrival("b", 1), {})
    assert (names(now.at_work), now.ready) == ([("a", 1), ("c", 1)], ("d",))
    now = now.with_arrival(arrival("c", 1), {}).with_arrival(arrival("a", 1), {})
    assert (names(now.at_work), now.is_over) == ([("d", 1)], True)
    later = begin(settings, 2, now.record({"a": 0, "b": 0, "c": 0}))
    assert (names(later.at_work), later.ready) == ([("d", 1), ("b", 2)], ("c", "a"))


def test_an_update_that_is_too_old_is_refused_and_its_client_begins_again() -> None:
    last = BufferedRound(arrivals=(), at_work=(ClientAtWork(client="d", began=2),), ready=("a", "b", "c"))
    now = begin(BufferSettings(max_staleness=3), 6, last)
    assert now.staleness_problem("a", BufferSettings(max_staleness=3)) is None
    assert now.staleness_problem("d", BufferSettings(max_staleness=4)) is None
    problem = now.staleness_problem("d", BufferSettings(max_staleness=3))
    assert "began 4 server steps ago, expected at most 3 (buffer.max_staleness)" in str(problem)
    assert names(now.with_arrival(arrival("d", 2, None), {}).at_work)[-1] == ("d", 6)


def test_some_updates_of_a_buffer_may_be_too_old() -> None:
    old = (ClientAtWork(client="c", began=1), ClientAtWork(client="d", began=1))
    settings = BufferSettings(max_staleness=1, max_stale_updates=1, size=3)
    now = begin(settings, 4, BufferedRound(arrivals=(), at_work=old, ready=("a", "b")))
    assert now.staleness_problem("d", settings) is None
    now = now.with_arrival(arrival("d", 1, 0.5), {})
    assert now.staleness_problem("c", settings) is not None
    assert now.staleness_problem("a", settings) is None


def test_refused_clients_are_asked_again_in_the_next_attempt_or_round() -> None:
    settings = BufferSettings(size=2)
    now = begin(settings)
    for client in CLIENTS:
        now = now.with_arrival(arrival(client, 1, 1.0 if client == "a" else None), {})
    assert now.is_over
    assert names(now.asked_again().at_work) == [("b", 1), ("c", 1), ("d", 1)]
    assert names(begin(settings, 2, now.record({"a": 0.0})).at_work) == [(c, 2) for c in CLIENTS]


def test_an_update_that_was_put_aside_has_no_factor_in_the_record() -> None:
    now = begin(BufferSettings(size=2)).with_arrival(arrival("a", 1), {}).with_arrival(arrival("b", 1), {})
    assert [one.factor for one in now.record({"a": 1.0}).arrivals] == [1.0, None]

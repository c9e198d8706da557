"""Tables of buffered rounds: staleness, factor, time to the answer and waiting time of each client."""

from zk0.records import Arrival, BufferedRound, Checkpoint, ClientAtWork, RoundRecord
from zk0.report.tables.arrival_tables import arrival_table, waiting_table


def record(number: int, arrivals: list[Arrival], at_work: dict[str, int], ready: tuple[str, ...] = ()) -> RoundRecord:
    clients = tuple(ClientAtWork(client=client, began=began) for client, began in at_work.items())
    buffered = BufferedRound(arrivals=tuple(arrivals), at_work=clients, ready=ready)
    weights = Checkpoint(round=number, path="w", digest="d", bytes=1)
    return RoundRecord(round=number, checkpoint=weights, buffered=buffered, seconds=1, finished_at="")


def arrival(client: str, began: int, factor: float | None, seconds: float, waited: float | None = None) -> Arrival:
    return Arrival(client=client, began=began, factor=factor, seconds=seconds, waited_seconds=waited)


HISTORY = [
    record(1, [arrival("a", 1, 1.0, 1.0, 2.0), arrival("b", 1, 1.0, 3.0, 0.0)], {"c": 1}),
    record(2, [arrival("a", 2, 1.0, 2.0, 4.0), arrival("d", 1, None, 9.0)], {"c": 1}),
    record(3, [arrival("c", 1, 0.5, 7.0, None), arrival("a", 3, 0.25, 6.0, 0.0)], {"b": 3}, ("a", "c")),
]


def test_each_client_has_its_staleness_and_its_times() -> None:
    headings, rows = waiting_table(HISTORY).as_text()
    assert headings[:4] == (
        "client",
        "updates used",
        "refused",
        "staleness, mean (server steps)",
    )
    assert rows == (
        ("a", "3", "0", "0.00", "0", "0.750", "3.00", "2.00", "–"),
        ("b", "1", "0", "0.00", "0", "1.000", "3.00", "0.00", "3"),
        ("c", "1", "0", "2.00", "2", "0.500", "7.00", "–", "–"),
        ("d", "0", "1", "–", "–", "–", "–", "–", "–"),
    )


def test_every_arrival_has_a_row_in_its_order() -> None:
    _, rows = arrival_table(HISTORY).as_text()
    assert [row[:4] for row in rows] == [
        ("1", "a", "1", "1.000"),
        ("1", "b", "1", "1.000"),
        ("2", "a", "2", "1.000"),
        ("2", "d", "1", "–"),
        ("3", "c", "1", "0.500"),
        ("3", "a", "3", "0.250"),
    ]


def test_synchronous_rounds_have_no_rows() -> None:
    history = [one.model_copy(update={"buffered": None}) for one in HISTORY]
    assert (waiting_table(history).rows, arrival_table(history).rows) == ((), ())

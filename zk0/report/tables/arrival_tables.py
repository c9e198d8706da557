"""Tables of buffered rounds: how old the updates of each client were, and how long it trained and waited."""

from collections.abc import Sequence
from statistics import fmean

from zk0.records import Arrival, RoundRecord
from zk0.report.metrics import sorted_by_round
from zk0.report.tables.table import Cell, Column, Table, decimal_cell, integer_cell, text_cell


def waiting_table(history: Sequence[RoundRecord]) -> Table:
    """Staleness and times of each client over all buffered rounds, and since when it trains now."""
    columns = (
        Column(title="client", kind="text"),
        Column(title="updates used"),
        Column(title="refused"),
        Column(title="staleness, mean", unit="server steps"),
        Column(title="staleness, largest", unit="server steps"),
        Column(title="factor, mean"),
        Column(title="answers after", unit="s"),
        Column(title="waits then", unit="s"),
        Column(title="trains since round"),
    )
    of_client: dict[str, list[tuple[int, Arrival]]] = {}
    for record in sorted_by_round(history):
        for arrival in record.buffered.arrivals if record.buffered else ():
            of_client.setdefault(arrival.client, []).append((record.round - arrival.began, arrival))
    last = sorted_by_round(history)[-1].buffered if history else None
    at_work = {one.client: one.began for one in last.at_work} if last else {}
    names = sorted(of_client.keys() | at_work.keys() | set(last.ready if last else ()))
    rows = tuple(_waiting_row(name, of_client.get(name, []), at_work.get(name)) for name in names)
    return Table(caption="Staleness and waiting time", columns=columns, rows=rows)


def _waiting_row(client: str, arrivals: Sequence[tuple[int, Arrival]], began: int | None) -> tuple[Cell, ...]:
    used = [(age, arrival) for age, arrival in arrivals if arrival.factor is not None]
    staleness = [age for age, _ in used]
    return (
        text_cell(client),
        integer_cell(len(used)),
        integer_cell(len(arrivals) - len(used)),
        decimal_cell(_mean(staleness), 2),
        integer_cell(max(staleness, default=None)),
        decimal_cell(_mean([arrival.factor for _, arrival in used]), 3),
        decimal_cell(_mean([arrival.seconds for _, arrival in used]), 2),
        decimal_cell(_mean([arrival.waited_seconds for _, arrival in used]), 2),
        integer_cell(began),
    )


def arrival_table(history: Sequence[RoundRecord]) -> Table:
    """Every answer of the buffered rounds, in the order of arrival."""
    columns = (
        Column(title="round"),
        Column(title="client", kind="text"),
        Column(title="began in round"),
        Column(title="factor"),
        Column(title="answers after", unit="s"),
        Column(title="waits then", unit="s"),
    )
    rows = tuple(
        (
            integer_cell(record.round),
            text_cell(arrival.client),
            integer_cell(arrival.began),
            decimal_cell(arrival.factor, 3),
            decimal_cell(arrival.seconds, 2),
            decimal_cell(arrival.waited_seconds, 2),
        )
        for record in sorted_by_round(history)
        if record.buffered
        for arrival in record.buffered.arrivals
    )
    return Table(caption="Order of arrivals", columns=columns, rows=rows)


def _mean(values: Sequence[float | None]) -> float | None:
    """Mean of the values that are known; None without any."""
    known = [value for value in values if value is not None]
    return fmean(known) if known else None

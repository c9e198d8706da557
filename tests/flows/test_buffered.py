"""Buffered sessions of `zk0 run`: the order of arrivals decides the weights, and can be repeated."""

import signal
from pathlib import Path
from typing import Any

import pytest

from zk0.audit.ledger import Ledger
from zk0.records import RoundRecord

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]  # they wait for a server and for half a minute of imports

CLIENTS = ", ".join(f'{{name="{n}", dataset="local:DATA/{n}"}}' for n in "abc")
MODE = ("federation.mode=buffered",)


def arguments(forked_zk0: Any, output: str, *settings: str) -> list[str]:
    """Return the arguments of a session with three clients."""
    clients = f"clients=[{CLIENTS.replace('DATA', str(forked_zk0.path / 'data'))}]"
    return list(forked_zk0.start_arguments(output, clients, *settings))


def rounds(output: Path) -> tuple[RoundRecord, ...]:
    (folder,) = output.iterdir()
    return Ledger(folder / "ledger.jsonl").read()


def digests(history: tuple[RoundRecord, ...]) -> list[str]:
    return [record.checkpoint.digest for record in history]


def test_a_buffer_of_all_clients_has_the_weights_of_synchronous_rounds(forked_zk0: Any) -> None:
    """Both sessions are killed when their second round is in the ledger: the report would take longest."""
    for output, settings in (("synchronous", ()), ("all", (*MODE, "buffer.size=3"))):
        killed = forked_zk0.run(arguments(forked_zk0, output, *settings), ("open", r"/\.federated_metrics", 2))
        assert killed.code == -signal.SIGKILL, killed.output[-3000:]
    synchronous, buffered = (rounds(forked_zk0.path / output) for output in ("synchronous", "all"))
    assert len(buffered) == 3
    assert digests(buffered) == digests(synchronous)
    assert [[a.factor for a in record.buffered.arrivals] for record in buffered[1:] if record.buffered] == [[1] * 3] * 2


def test_an_order_that_chance_has_made_is_repeated(forked_zk0: Any) -> None:
    settings = (*MODE, "rounds=3", "buffer.size=1", "federation.workers=2")
    done = forked_zk0.run(arguments(forked_zk0, "chance", *settings))
    assert done.code == 0, done.output[-3000:]
    first = rounds(forked_zk0.path / "chance")
    (folder,) = (forked_zk0.path / "chance").iterdir()
    output = forked_zk0.path / "again"
    again = forked_zk0.run(["run", "--from", str(folder), "--quiet", "--set", f"output_dir={output}"])
    assert "reproduced: all 4 digests" in again.output
    orders = [
        [(a.client, a.began) for record in history for a in (record.buffered.arrivals if record.buffered else ())]
        for history in (first, rounds(output))
    ]
    assert orders[0] == orders[1]
    assert len(orders[0]) == 3
    assert all(record.buffered is not None and len(record.buffered.at_work) == 2 for record in first[1:])

"""Buffered sessions of `zk0 run`: the order of arrivals decides the weights, and can be repeated."""

from pathlib import Path
from typing import Any

import pytest

from zk0.audit.ledger import Ledger
from zk0.records import RoundRecord

pytestmark = pytest.mark.timeout(900)  # the first test waits for a server and for half a minute of imports

CLIENTS = ", ".join(f'{{name="{n}", dataset="local:DATA/{n}"}}' for n in "abc")
MODE = ("federation.mode=buffered", "rounds=3")


def run(forked_zk0: Any, output: str, *settings: str) -> tuple[RoundRecord, ...]:
    """Run a session of three clients, and return its ledger."""
    clients = f"clients=[{CLIENTS.replace('DATA', str(forked_zk0.path / 'data'))}]"
    done = forked_zk0.run(forked_zk0.start_arguments(output, clients, *settings))
    assert done.code == 0, done.output[-3000:]
    return rounds(forked_zk0.path / output)


def rounds(output: Path) -> tuple[RoundRecord, ...]:
    (folder,) = output.iterdir()
    return Ledger(folder / "ledger.jsonl").read()


def digests(history: tuple[RoundRecord, ...]) -> list[str]:
    return [record.checkpoint.digest for record in history]


def test_a_buffer_of_all_clients_has_the_weights_of_synchronous_rounds(forked_zk0: Any) -> None:
    """Without a virtual clock: the clients answer in whatever order, two of them at a time."""
    synchronous = run(forked_zk0, "synchronous", "rounds=3")
    buffered = run(forked_zk0, "all", *MODE, "buffer.size=3", "federation.workers=2")
    assert digests(buffered) == digests(synchronous)
    assert [[a.factor for a in record.buffered.arrivals] for record in buffered[1:] if record.buffered] == [[1] * 3] * 3


def test_an_order_that_chance_has_made_is_repeated(forked_zk0: Any) -> None:
    first = run(forked_zk0, "chance", *MODE, "buffer.size=1", "federation.workers=2")
    (folder,) = (forked_zk0.path / "chance").iterdir()
    again = forked_zk0.run(
        ["run", "--from", str(folder), "--quiet", "--set", f"output_dir={forked_zk0.path / 'again'}"]
    )
    assert "reproduced: all 4 digests" in again.output
    repeated = rounds(forked_zk0.path / "again")
    orders = [[(a.client, a.began) for r in history[1:] for a in r.buffered.arrivals] for history in (first, repeated)]
    assert orders[0] == orders[1]
    assert len(orders[0]) == 3
    assert all(record.buffered is not None and len(record.buffered.at_work) == 2 for record in first[1:])


def test_an_order_that_is_none_is_refused_before_anything_starts(forked_zk0: Any) -> None:
    (folder,) = (forked_zk0.path / "synchronous").iterdir()
    refused = forked_zk0.run(forked_zk0.start_arguments("refused", *MODE, "buffer.size=1", f"buffer.order_of={folder}"))
    assert "no buffered round; expected the folder of a buffered session" in refused.error_line
    assert not (forked_zk0.path / "refused").exists()

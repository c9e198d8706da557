"""Comparing a session with a second run of it: equal digests, or the first difference and its likely cause."""

import re

import pytest

from zk0.audit.reproduction import check_reproduced
from zk0.errors import CheckpointError
from zk0.records import Checkpoint, ClientMetrics, RoundRecord, Update


def update(client: str, digest: str) -> Update:
    metrics = ClientMetrics.model_validate(dict.fromkeys(ClientMetrics.model_fields, 1))
    return Update(
        client=client, round=1, global_digest="g", path="p", digest=digest, bytes=1, examples=1, dataset="d",
        metrics=metrics,
    )  # fmt: skip


def finished(number: int, digest: str, *updates: Update) -> RoundRecord:
    return RoundRecord(
        round=number, checkpoint=Checkpoint(round=number, path="w", digest=digest, bytes=1), updates=updates,
        seconds=1, finished_at="",
    )  # fmt: skip


FIRST = (finished(0, "s"), finished(1, "x", update("a", "1"), update("b", "2")))


def test_equal_digests() -> None:
    assert check_reproduced(FIRST, FIRST, "outputs/one") == (
        "reproduced: all 2 digests, rounds 0 to 1, equal those of outputs/one"
    )


@pytest.mark.parametrize(
    ("again", "message"),
    [
        ((finished(0, "t"),), "round 0 has weights t, in outputs/one it had s; the session starts from another policy"),
        ((FIRST[0], finished(1, "y", update("a", "1"))), "round 1 .*; a, b took part then, a now"),
        (
            (FIRST[0], finished(1, "y", update("a", "1"), update("b", "3"))),
            "round 1 .*; updates of b differ, 1 are equal: other datasets",
        ),
        ((FIRST[0], finished(1, "y", *FIRST[1].updates)), "every update is equal, so the server's part differs"),
        (FIRST[:1], "1 rounds are finished, outputs/one has 2"),
    ],
)
def test_first_difference_is_named(again: tuple[RoundRecord, ...], message: str) -> None:
    with pytest.raises(CheckpointError) as found:
        check_reproduced(FIRST, again, "outputs/one")
    assert re.search(message, str(found.value)), found.value

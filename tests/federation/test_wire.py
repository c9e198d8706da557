"""Rounds whose updates travel in fewer bits, through real clients, the spool and the average."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from zk0.bf16 import from_bf16, to_bf16
from zk0.federation.downlink import as_sent
from zk0.federation.open import open_federation
from zk0.journal import Journal
from zk0.records import Wire
from zk0.session import Session
from zk0.weights import load_weights


@pytest.fixture(scope="module")
def rounds_with(
    session_of: Callable[..., Session], drive: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., tuple[Any, list[Any]]]:
    """Two rounds of two clients with a wire format; what was driven, and the updates of each round."""

    def run(**wire: Any) -> tuple[Any, list[Any]]:
        folder = tmp_path_factory.mktemp("wire")
        session = session_of(("a", "b"))
        with open_federation(session, folder.name, folder) as federation:
            driven, updates = drive(session, folder, folder.name), []
            driven.begin(federation)
            for _ in (1, 2):
                found = driven.train(federation, wire=Wire(**wire))
                assert found.refusals == ()
                updates.append(found.updates)
                driven.average(found.updates)
        return driven, updates

    return run


@pytest.fixture(scope="module")
def dense(rounds_with: Callable[..., tuple[Any, list[Any]]]) -> tuple[Any, list[Any]]:
    return rounds_with()


def flat(path: str) -> np.ndarray:
    weights = load_weights(Path(path))
    return np.concatenate([weights[n].ravel().astype(float) for n in sorted(weights)])


@pytest.mark.parametrize(
    ("wire", "share", "error"), [({"up": "bf16"}, 0.51, 0.005), ({"up": "int8", "packed": True}, 0.27, 0.03)]
)
def test_fewer_bytes_and_nearly_the_same_weights(rounds_with, dense, wire, share, error):
    driven, updates = rounds_with(**wire)
    for ours, theirs in zip(updates, dense[1], strict=True):
        assert all(one.bytes < share * other.bytes for one, other in zip(ours, theirs, strict=True))
    (start, first, second), (_, wanted, later) = ([flat(c.path) for c in d.history] for d in (driven, dense[0]))
    assert np.linalg.norm(first - wanted) < error * np.linalg.norm(wanted - start)
    assert np.linalg.norm(second - later) < 0.1 * np.linalg.norm(later - start)  # small differences grow by training
    (sent,) = [s for s in Journal(driven.folder / "clients" / "a" / "sent.jsonl").read() if s.round == 2]
    assert sent.weights.bytes == updates[1][0].bytes
    assert sent.weights.digest == updates[1][0].digest


@pytest.mark.parametrize(("down", "share"), [("bf16", 0.51), ("int8", 0.29)])
def test_few_bits_on_the_way_down_cost_the_servers_weights_nothing(session_of, drive, tmp_path, down, share):
    """Clients that hardly move: what they start from is rounded, what the server keeps is not."""
    session = session_of(("a", "b"), federation={"wire": "bf16", "wire_down": down})
    with open_federation(session, "down", tmp_path) as federation:
        driven = drive(session, tmp_path, "down")
        driven.begin(federation)
        start = Path(driven.history[0].path)
        sent = as_sent(session.federation, start, tmp_path / "round-000" / "sent.safetensors")
        assert sent.bytes < share * start.stat().st_size
        plans = [sent.told(plan) for plan in driven.plans(lr=1e-7, mu=0.0)]
        found = federation.train(plans, start, driven.spool(), sent=sent.path)
        assert found.refusals == ()
        made = driven.average(found.updates)
    before, after = flat(str(start)), flat(made.path)
    assert 0 < np.abs(after - before).max() < 1e-5  # three steps of 1e-7; their rounding is fifty times as much
    rounded = np.abs(from_bf16(to_bf16(before.astype(np.float32))) - before)
    assert rounded.max() > 4e-4


def test_weights_that_are_not_what_was_sent_are_refused(session_of, drive, tmp_path):
    session = session_of(("a", "b"), federation={"wire": "bf16", "wire_down": "bf16"})
    with open_federation(session, "other", tmp_path) as federation:
        driven = drive(session, tmp_path, "other")
        driven.begin(federation)
        start = Path(driven.history[0].path)
        sent = as_sent(session.federation, start, tmp_path / "round-000" / "sent.safetensors")
        data = bytearray(sent.path.read_bytes())
        data[-1] ^= 1
        sent.path.write_bytes(data)
        found = federation.train([sent.told(plan) for plan in driven.plans()], start, driven.spool(), sent=sent.path)
        assert [r.client for r in found.refusals] == ["a", "b"]
        assert "not the weights that were recorded" in found.refusals[0].reason


def test_lossless_compression_changes_no_bit(rounds_with, dense):
    driven, updates = rounds_with(packed=True)
    assert [c.digest for c in driven.history] == [c.digest for c in dense[0].history]
    assert all(one.bytes < 0.97 * other.bytes for one, other in zip(updates[0], dense[1][0], strict=True))


def test_another_format_than_was_asked_for_is_refused(session_of, drive, tmp_path):
    session = session_of(("a", "b"))
    with open_federation(session, "asked", tmp_path) as federation:
        driven = drive(session, tmp_path, "asked")
        driven.begin(federation)
        plans = driven.plans()
        kept = tmp_path / "clients" / "a" / "updates" / f"round-001-{plans[0].digest()[:16]}.json"
        driven.train(federation)
        kept.write_text(kept.read_text().replace('"up":"fp32"', '"up":"bf16"'))
        (tmp_path / "round-001" / "updates" / "a.json").unlink()
        found = driven.train(federation)
        (refusal,) = found.refusals
        assert refusal.client == "a"
        assert "was sent as up='bf16'" in refusal.reason

"""Rounds with quantized and compressed updates, through real clients, the spool and the average."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from zk0.audit.journal import SentJournal
from zk0.federation.open import open_federation
from zk0.federation.protocol.downlink import encode_global_weights
from zk0.records import WireFormat
from zk0.settings.session import Session
from zk0.weights.bf16 import from_bf16, to_bf16
from zk0.weights.digests import load_weights


@pytest.fixture(scope="module")
def rounds_with(
    session_of: Callable[..., Session], drive: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., tuple[Any, list[Any]]]:
    """Return a function that runs two rounds with a wire format; it returns the driver and each round's updates."""

    def run(**wire: Any) -> tuple[Any, list[Any]]:
        folder = tmp_path_factory.mktemp("wire")
        session = session_of(("a", "b"))
        with open_federation(session, folder.name, folder) as federation:
            driven, updates = drive(session, folder, folder.name), []
            driven.begin(federation)
            for _ in (1, 2):
                found = driven.train(federation, wire=WireFormat(**wire))
                assert found.refusals == ()
                updates.append(found.updates)
                driven.average(found.updates)
        return driven, updates

    return run


@pytest.fixture(scope="module")
def dense(rounds_with: Callable[..., tuple[Any, list[Any]]]) -> tuple[Any, list[Any]]:
    return rounds_with()


def test_digests_of_a_session_are_sha256_where_it_asks_for_them(session_of, drive, tmp_path):
    session = session_of(("a", "b"), federation={"digest": "sha256"})
    with open_federation(session, "s", tmp_path) as federation:
        driven = drive(session, tmp_path, "s")
        driven.begin(federation)
        found = driven.train(federation, wire=WireFormat(upload="int8"))
        driven.average(found.updates)
    assert found.refusals == ()
    digests = [checkpoint.digest for checkpoint in driven.history] + [update.digest for update in found.updates]
    assert all(re.fullmatch("sha256:[0-9a-f]{64}", one) for one in digests)
    sent = encode_global_weights(
        session.federation.model_copy(update={"wire_down": "bf16"}), Path(driven.history[1].path), tmp_path / "sent"
    )
    assert str(sent.wire.download_digest).startswith("sha256:")


def flat(path: str) -> np.ndarray:
    weights = load_weights(Path(path))
    return np.concatenate([weights[n].ravel().astype(float) for n in sorted(weights)])


@pytest.mark.parametrize(
    ("wire", "share", "error"),
    [({"upload": "bf16"}, 0.51, 0.005), ({"upload": "int8", "compressed": True}, 0.27, 0.03)],
)
def test_fewer_bytes_and_nearly_the_same_weights(rounds_with, dense, wire, share, error):
    driven, updates = rounds_with(**wire)
    for ours, theirs in zip(updates, dense[1], strict=True):
        assert all(one.bytes < share * other.bytes for one, other in zip(ours, theirs, strict=True))
    (start, first, second), (_, wanted, later) = ([flat(c.path) for c in d.history] for d in (driven, dense[0]))
    assert np.linalg.norm(first - wanted) < error * np.linalg.norm(wanted - start)
    assert np.linalg.norm(second - later) < 0.1 * np.linalg.norm(later - start)  # small differences grow by training
    (sent,) = [s for s in SentJournal(driven.folder / "clients" / "a" / "sent.jsonl").read() if s.round == 2]
    assert sent.weights.bytes == updates[1][0].bytes
    assert sent.weights.digest == updates[1][0].digest


@pytest.mark.parametrize(("down", "share"), [("bf16", 0.51), ("int8", 0.29)])
def test_a_quantized_download_does_not_change_the_servers_weights(session_of, drive, tmp_path, down, share):
    """Clients with a tiny learning rate: their start weights are rounded, the server's weights are not."""
    session = session_of(("a", "b"), federation={"wire": "bf16", "wire_down": down})
    with open_federation(session, "down", tmp_path) as federation:
        driven = drive(session, tmp_path, "down")
        driven.begin(federation)
        start = Path(driven.history[0].path)
        sent = encode_global_weights(session.federation, start, tmp_path / "round-000" / "sent.safetensors")
        assert sent.bytes < share * start.stat().st_size
        plans = [sent.with_wire(plan) for plan in driven.plans(lr=1e-7, mu=0.0)]
        found = federation.train(plans, start, driven.spool(), sent_weights=sent.path)
        assert found.refusals == ()
        made = driven.average(found.updates)
    before, after = flat(str(start)), flat(made.path)
    assert 0 < np.abs(after - before).max() < 1e-5  # three steps of 1e-7; their rounding is fifty times as much
    rounded = np.abs(from_bf16(to_bf16(before.astype(np.float32))) - before)
    assert rounded.max() > 4e-4


def test_a_client_refuses_weights_with_another_digest(session_of, drive, tmp_path):
    session = session_of(("a", "b"), federation={"wire": "bf16", "wire_down": "bf16"})
    with open_federation(session, "other", tmp_path) as federation:
        driven = drive(session, tmp_path, "other")
        driven.begin(federation)
        start = Path(driven.history[0].path)
        sent = encode_global_weights(session.federation, start, tmp_path / "round-000" / "sent.safetensors")
        data = bytearray(sent.path.read_bytes())
        data[-1] ^= 1
        sent.path.write_bytes(data)
        found = federation.train(
            [sent.with_wire(plan) for plan in driven.plans()], start, driven.spool(), sent_weights=sent.path
        )
        assert [r.client for r in found.refusals] == ["a", "b"]
        assert "not the weights that were recorded" in found.refusals[0].reason


def test_lossless_compression_changes_no_bit(rounds_with, dense):
    driven, updates = rounds_with(compressed=True)
    assert [c.digest for c in driven.history] == [c.digest for c in dense[0].history]
    assert all(one.bytes < 0.97 * other.bytes for one, other in zip(updates[0], dense[1][0], strict=True))


def test_an_update_in_another_wire_format_is_refused(session_of, drive, tmp_path):
    session = session_of(("a", "b"))
    with open_federation(session, "format", tmp_path) as federation:
        driven = drive(session, tmp_path, "format")
        driven.begin(federation)
        plans = driven.plans()
        driven.train(federation)
        (stored,) = (tmp_path / "clients/a").glob(f"sessions/*/updates/round-001-{plans[0].digest()[:16]}.json")
        stored.write_text(stored.read_text().replace('"upload":"fp32"', '"upload":"bf16"'))
        (tmp_path / "round-001" / "updates" / "a.json").unlink()
        found = driven.train(federation)
        (refusal,) = found.refusals
        assert refusal.client == "a"
        assert "its wire format is upload='bf16'" in refusal.reason

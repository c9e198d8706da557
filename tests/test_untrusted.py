"""Any bytes from outside are parsed to a value or raise one of our own errors."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from safetensors.numpy import save

from zk0.audit.journal import SentJournal
from zk0.audit.ledger import Ledger
from zk0.errors import CheckpointError, LedgerError
from zk0.records import Checkpoint, ClientMetrics, Member, Record, RoundRecord, Update
from zk0.settings.plans import EvaluationPlan, RoundPlan, SessionTerms
from zk0.weights.digests import digest, load_weights
from zk0.weights.files import open_weights

FAST = settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
VALID = save({"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.zeros((), np.int8)})
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


def mutated(valid: bytes) -> st.SearchStrategy[bytes]:
    """A valid input with a few bytes changed, removed or inserted."""
    at = st.integers(0, len(valid))
    changed = st.lists(st.tuples(at, st.integers(0, 255)), min_size=1, max_size=4).map(
        lambda places: bytes(dict(places).get(i, byte) for i, byte in enumerate(valid))
    )
    inserted = st.tuples(at, st.binary(max_size=8)).map(lambda p: valid[: p[0]] + p[1] + valid[p[0] :])
    return st.binary(max_size=200) | changed | at.map(lambda n: valid[:n]) | inserted


def with_header(header: Any, data: bytes = bytes(32)) -> bytes:
    """A safetensors file with any JSON as its header."""
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


ENTRIES = st.dictionaries(
    st.sampled_from(["a", "b", "__metadata__", ""]) | st.text(max_size=3),
    JSON
    | st.fixed_dictionaries(
        {
            "dtype": st.sampled_from(["F32", "I8", "BF16", "F8_E4M3", "BOOL", "C64", "X", 3]),
            "shape": st.lists(st.integers(-1, 4) | st.sampled_from([2**31, 2**63, 0.5]), max_size=3),
            "data_offsets": st.lists(st.integers(-1, 40), min_size=1, max_size=3),
        }
    ),
    max_size=3,
)


@FAST
@given(mutated(VALID) | ENTRIES.map(with_header) | JSON.map(with_header))
@example(VALID)
@example(with_header({"a": {"dtype": "F32", "shape": [2**62, 4, 0], "data_offsets": [0, 0]}}, b""))
def test_bytes_of_weights(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "w"
    path.write_bytes(data)
    try:
        weights = load_weights(path)
    except CheckpointError:
        return
    with open_weights(path) as file:
        assert digest(file) == digest(weights)
        assert {n: s.shape for n, s in file.specs.items()} == {n: w.shape for n, w in weights.items()}


METRICS = dict.fromkeys(ClientMetrics.model_fields, 1)
UPDATE = Update(
    client="a", round=1, global_digest="g", path="p", digest="d", bytes=1, examples=1, dataset="d",
    metrics=ClientMetrics.model_validate(METRICS),
)  # fmt: skip


@pytest.mark.parametrize("record", [Update, Member, RoundPlan, EvaluationPlan, SessionTerms, RoundRecord, Checkpoint])
@FAST
@given(data=mutated(UPDATE.model_dump_json().encode()) | JSON.map(lambda value: json.dumps(value).encode()))
def test_text_of_a_record(record: type[Record], data: bytes) -> None:
    try:
        found = record.model_validate_json(data)
    except ValidationError:
        return
    assert record.model_validate_json(found.model_dump_json()) == found


@FAST
@given(value=st.dictionaries(st.sampled_from(sorted(Update.model_fields)), JSON, max_size=14))
def test_fields_of_an_update(value: dict[str, Any]) -> None:
    try:
        found = Update.model_validate_json(json.dumps({**UPDATE.model_dump(mode="json"), **value}))
    except ValidationError:
        return
    assert found.examples >= 1
    assert np.isfinite(list(found.metrics.model_dump().values())).all()


@pytest.fixture(scope="module")
def chains(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, bytes, Path]:
    """A ledger of three rounds, a journal of two messages, and the folder with its key."""
    from zk0.audit.journal import SentMessage

    folder = tmp_path_factory.mktemp("chains")
    for number in range(3):
        checkpoint = Checkpoint(round=number, path="w", digest=str(number), bytes=1)
        Ledger(folder / "ledger.jsonl").append(
            RoundRecord(round=number, checkpoint=checkpoint, seconds=1, finished_at="")
        )
    for number in (1, 2):
        journal = SentJournal(folder / "sent.jsonl")
        journal.append(SentMessage(at="", to="s", kind="train", round=number, text="{}"))
    return (folder / "ledger.jsonl").read_bytes(), (folder / "sent.jsonl").read_bytes(), folder


@FAST
@given(data=st.data())
def test_bytes_of_a_ledger(chains: tuple[bytes, bytes, Path], tmp_path: Path, data: st.DataObject) -> None:
    valid = chains[0]
    path = tmp_path / "ledger.jsonl"
    path.write_bytes(found := data.draw(mutated(valid)))
    try:
        rounds = Ledger(path).read()
    except LedgerError:
        return
    lines = found.split(b"\n")[:-1]
    assert [record.round for record in rounds] == list(range(len(lines)))
    # the chain protects all lines but the last
    assert lines[:-1] == valid.split(b"\n")[: len(lines) - 1] or not lines[:-1]


@FAST
@given(data=st.data())
def test_bytes_of_a_journal(chains: tuple[bytes, bytes, Path], data: st.DataObject) -> None:
    _, valid, folder = chains
    path = folder / "sent.jsonl"
    path.write_bytes(found := data.draw(mutated(valid)))
    try:
        messages = SentJournal(path).read()
    except LedgerError:
        return
    # every line is signed: only removing the last ones goes unnoticed
    assert valid.startswith(found[: found.rfind(b"\n") + 1])
    assert len(messages) == found.count(b"\n")

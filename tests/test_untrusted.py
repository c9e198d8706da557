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

from zk0.audit.card_root import CardRoot
from zk0.audit.journal import OperatorAct, ReceivedAnswer, SentJournal, SentMessage
from zk0.audit.journal_heads import JournalHead
from zk0.audit.ledger import Ledger
from zk0.audit.ledger_heads import SignedHead, read_heads
from zk0.audit.merkle import Receipt
from zk0.errors import CheckpointError, LedgerError
from zk0.federation.network.enrolment_kit import EnrolmentKit
from zk0.records import Checkpoint, ClientMetrics, Member, Record, RoundRecord, Update
from zk0.settings.node_limits import NodeLimits
from zk0.settings.plans import EvaluationPlan, FeaturePlan, JoiningReportPlan, RoundPlan, SessionTerms
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


OTHER_RECORDS = [Receipt, JournalHead, SignedHead, NodeLimits, EnrolmentKit, SentMessage, ReceivedAnswer, OperatorAct]


@pytest.mark.parametrize(
    "record",
    [Update, Member, RoundPlan, EvaluationPlan, SessionTerms, RoundRecord, Checkpoint, *OTHER_RECORDS],
)
@FAST
@given(data=mutated(UPDATE.model_dump_json().encode()) | JSON.map(lambda value: json.dumps(value).encode()))
def test_text_of_a_record(record: type[Record], data: bytes) -> None:
    try:
        found = record.model_validate_json(data)
    except ValidationError:
        return
    assert record.model_validate_json(found.model_dump_json()) == found


PLAN = {
    "terms": {"session": "s", "seed": 1, "contract": {}, "data": {}, "simulator": {}}, "round": 1, "client": "a",
    "recipe": {"path": "tiny", "cameras": ["x"], "joints": 6, "seed": 1}, "global_digest": "0", "statistics": None,
    "training": {},
}  # fmt: skip
FROM_A_SERVER: list[tuple[type[Record], dict[str, Any]]] = [
    (RoundPlan, PLAN | {"lr": 1e-3, "mu": 0.0, "scheduler": {}}),
    (EvaluationPlan, PLAN | {"times": 1, "batch_size": 1, "every_frames": 1}),
    (FeaturePlan, PLAN | {"every_frames": 1}),
    (JoiningReportPlan, PLAN | {"times": 1, "batch_size": 1, "every_frames": 1, "lrs": [1.0], "scheduler": {}}),
    (Receipt, {"round": 1, "root": "0" * 64, "index": 0, "updates": 1, "path": []}),
    (JournalHead, {"lines": 1, "digest": "0" * 64, "key": "0" * 64, "signature": "0" * 128}),
    (SignedHead, {
        "head": {"session": "s", "rounds": 1, "root": "0" * 64, "weights": "w", "previous": "0" * 64},
        "signature": "0" * 128,
    }),
]  # fmt: skip


def integer_fields(record: type[Record], values: dict[str, Any], inside: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Return the places of all whole numbers of a record, defaults of its parts included."""
    found = []
    for name, value in record.model_validate(values).model_dump().items():
        if isinstance(value, dict):
            part = record.model_fields[name].annotation
            if isinstance(part, type) and issubclass(part, Record):
                found += integer_fields(part, value, (*inside, name))
        elif type(value) is int:
            found.append((*inside, name))
    return found


@pytest.mark.parametrize(("record", "values"), FROM_A_SERVER, ids=lambda one: getattr(one, "__name__", ""))
def test_every_whole_number_of_a_server_has_bounds(record: type[Record], values: dict[str, Any]) -> None:
    """A number of 400 digits fails where it is parsed, not where it is used."""
    fields = integer_fields(record, values)
    assert fields
    taken = []
    for place in fields:
        for number in (10**400, -(10**400), 2**64):
            changed = json.loads(json.dumps(record.model_validate(values).model_dump(mode="json")))
            part = changed
            for name in place[:-1]:
                part = part[name]
            part[place[-1]] = number
            try:
                record.model_validate_json(json.dumps(changed))
            except ValidationError:
                continue
            taken.append((place, number))
    assert taken == []


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


@FAST
@given(data=mutated(b'{"head":{"session":"s"},"signature":"0"}\n') | JSON.map(lambda v: json.dumps(v).encode()))
def test_bytes_of_a_file_of_heads(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "heads.jsonl").write_bytes(data)
    try:
        read_heads(tmp_path / "heads.jsonl")
    except LedgerError:
        return


@FAST
@given(data=mutated(f"# Card\n\n{CardRoot(round=3, root='0' * 64).line()}\n".encode()))
def test_bytes_of_a_model_card(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "README.md").write_bytes(data)
    try:
        found = CardRoot.read(tmp_path / "README.md")
    except LedgerError:
        return
    assert len(found.root) == 64

"""Arbitrary answers end in a refusal with a reason or in an update, never in a crash of the round."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from flwr.supercore.inflatable.inflatable_object import get_object_id
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from planned_updates import PlannedUpdate
from safetensors.numpy import load_file

from zk0.errors import FederationError
from zk0.federation.flower.flower_message import from_flower
from zk0.records import Refusal, Update, WireFormat

FAST = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "packed"])
def planned(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> PlannedUpdate:
    return PlannedUpdate(tmp_path_factory.mktemp("untrusted"), WireFormat(compressed=request.param))


def valid_bytes(planned: PlannedUpdate) -> bytes:
    return (planned.folder / ("sent.packed" if planned.plan.wire.compressed else "sent.safetensors")).read_bytes()


def test_a_valid_answer_is_accepted(planned: PlannedUpdate) -> None:
    assert isinstance(planned.receive(planned.update.model_dump_json(), valid_bytes(planned)), Update)


@FAST
@given(data=st.data())
def test_any_weights(planned: PlannedUpdate, data: st.DataObject) -> None:
    whole = valid_bytes(planned)
    at = st.integers(0, len(whole) - 1)
    flipped = st.tuples(at, st.integers(1, 255)).map(
        lambda p: whole[: p[0]] + bytes([whole[p[0]] ^ p[1]]) + whole[p[0] + 1 :]
    )
    sent = data.draw(st.binary(max_size=100) | flipped | at.map(lambda n: whole[:n]))
    found = planned.receive(planned.update.model_dump_json(), sent)
    if isinstance(found, Refusal):
        assert found.reason
        assert "\n" not in found.reason
    else:  # padding of the compressor or the header
        taken, whole_ones = load_file(found.path), load_file(planned.folder / "sent.safetensors")
        assert taken.keys() == whole_ones.keys()
        assert all(taken[name].tobytes() == whole_ones[name].tobytes() for name in taken)


@FAST
@given(
    fields=st.dictionaries(st.sampled_from(sorted(Update.model_fields)), JSON, max_size=3)
    | st.fixed_dictionaries({"client": st.text(max_size=3)})
    | st.fixed_dictionaries({"path": st.sampled_from(["/etc/passwd", "../../x", "", "\0"])})
    | st.fixed_dictionaries({"bytes": st.integers(), "examples": st.integers()})
)
def test_any_fields(planned: PlannedUpdate, fields: dict[str, Any]) -> None:
    text = json.dumps({**planned.update.model_dump(mode="json"), **fields})
    found = planned.receive(text, valid_bytes(planned))
    if isinstance(found, Update):
        assert (found.client, found.round, found.digest) == ("a", 1, planned.update.digest)
        assert Path(found.path).parent == planned.folder / "spool"
        assert found.examples >= 1


@FAST
@given(text=st.text(max_size=50) | JSON.map(json.dumps))
def test_any_text(planned: PlannedUpdate, text: str) -> None:
    assert isinstance(planned.receive(text, valid_bytes(planned)), Refusal)


@FAST
@given(
    body=st.binary(max_size=120)
    | st.tuples(
        st.sampled_from(["Message", "RecordDict", "ArrayRecord", "ConfigRecord", "Array", "ArrayChunk", "X"]),
        st.sampled_from(["", "0" * 64, "zz", "a,b"]),
        st.integers(-5, 200),
        st.binary(max_size=60),
    ).map(lambda p: f"{p[0]} {p[1]} {p[2]}".encode() + b"\0" + p[3])
)
def test_any_object_of_a_message(tmp_path: Path, body: bytes) -> None:
    root = SimpleNamespace(object_id=get_object_id(body))
    with pytest.raises(FederationError):
        from_flower(root, lambda object_id: body, tmp_path / "weights")
    assert list(tmp_path.iterdir()) == []

"""Answers of strangers: a refusal with a reason or an update, never a crash of the round."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, RecordDict
from flwr.supercore.inflatable.inflatable_object import get_object_id
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from zk0.errors import FederationError
from zk0.federation.parcel import unpacked
from zk0.federation.sent import WEIGHTS_PATH
from zk0.federation.spool import Spool
from zk0.packing import pack
from zk0.records import ClientMetrics, PolicyRecipe, Refusal, Update, Wire
from zk0.session import (
    ContractSettings,
    DataSettings,
    RoundPlan,
    SchedulerSettings,
    SimulatorSettings,
    Terms,
    TrainingSettings,
)
from zk0.weights import save_weights

FAST = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


class Place:
    """A spool, a plan, and what a good answer to it would be."""

    def __init__(self, folder: Path, wire: Wire) -> None:
        weights = {"w": np.zeros((2, 3), np.float32)}
        self.folder = folder
        self.digest, _ = save_weights(folder / "global.safetensors", weights)
        found, size = save_weights(folder / "sent.safetensors", weights)
        self.plan = RoundPlan(
            terms=Terms(
                session="s", seed=1, contract=ContractSettings(), data=DataSettings(), simulator=SimulatorSettings()
            ),
            round=1,
            client="a",
            recipe=PolicyRecipe(path="tiny", cameras=("x",), joints=6, seed=1),
            global_digest=self.digest,
            statistics=None,
            lr=1.0,
            mu=0.0,
            training=TrainingSettings(),
            scheduler=SchedulerSettings(),
            wire=wire,
        )
        pack(folder / "sent.safetensors", folder / "sent.packed")
        self.update = Update(
            client="a",
            round=1,
            global_digest=self.digest,
            path="sent.safetensors",
            digest=found,
            bytes=size,
            examples=1,
            dataset="d",
            metrics=ClientMetrics.model_validate(dict.fromkeys(ClientMetrics.model_fields, 1)),
            wire=wire,
        )

    def take(self, update: str, weights: bytes) -> Any:
        (self.folder / "came").write_bytes(weights)
        answer = RecordDict({"answer": ConfigRecord({"update": update, WEIGHTS_PATH: str(self.folder / "came")})})
        return Spool(self.folder / "spool", self.folder / "global.safetensors").take(answer, self.plan, ())


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "packed"])
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("untrusted"), Wire(packed=request.param))


def right_bytes(place: Place) -> bytes:
    return (place.folder / ("sent.packed" if place.plan.wire.packed else "sent.safetensors")).read_bytes()


def test_the_right_answer_is_taken(place: Place) -> None:
    assert isinstance(place.take(place.update.model_dump_json(), right_bytes(place)), Update)


@FAST
@given(data=st.data())
def test_any_weights(place: Place, data: st.DataObject) -> None:
    whole = right_bytes(place)
    at = st.integers(0, len(whole) - 1)
    flipped = st.tuples(at, st.integers(1, 255)).map(
        lambda p: whole[: p[0]] + bytes([whole[p[0]] ^ p[1]]) + whole[p[0] + 1 :]
    )
    sent = data.draw(st.binary(max_size=100) | flipped | at.map(lambda n: whole[:n]))
    found = place.take(place.update.model_dump_json(), sent)
    if isinstance(found, Refusal):
        assert found.reason
        assert "\n" not in found.reason
    else:  # padding of the compressor or the header, nothing that matters
        taken, whole_ones = load_file(found.path), load_file(place.folder / "sent.safetensors")
        assert taken.keys() == whole_ones.keys()
        assert all(taken[name].tobytes() == whole_ones[name].tobytes() for name in taken)


@FAST
@given(
    fields=st.dictionaries(st.sampled_from(sorted(Update.model_fields)), JSON, max_size=3)
    | st.fixed_dictionaries({"client": st.text(max_size=3)})
    | st.fixed_dictionaries({"path": st.sampled_from(["/etc/passwd", "../../x", "", "\0"])})
    | st.fixed_dictionaries({"bytes": st.integers(), "examples": st.integers()})
)
def test_any_fields(place: Place, fields: dict[str, Any]) -> None:
    text = json.dumps({**place.update.model_dump(mode="json"), **fields})
    found = place.take(text, right_bytes(place))
    if isinstance(found, Update):
        assert (found.client, found.round, found.digest) == ("a", 1, place.update.digest)
        assert Path(found.path).parent == place.folder / "spool"
        assert found.examples >= 1


@FAST
@given(text=st.text(max_size=50) | JSON.map(json.dumps))
def test_any_text(place: Place, text: str) -> None:
    assert isinstance(place.take(text, right_bytes(place)), Refusal)


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
        unpacked(root, lambda object_id: body, tmp_path / "weights")
    assert list(tmp_path.iterdir()) == []

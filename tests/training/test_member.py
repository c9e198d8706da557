"""What a client says when it joins: counts, moments, digests and names. Never a frame, never a path."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from zk0.records import Member
from zk0.session import ClientSettings, ContractSettings, DataSettings, SimulatorSettings, Terms
from zk0.training.client import Client

MOMENTS = {"count", "mean", "std", "min", "max"}


def join(root: Path, scratch: Path, cache: Path) -> Member:
    terms = Terms(
        session="s", seed=1, contract=ContractSettings(), data=DataSettings(), simulator=SimulatorSettings()
    )  # fmt: skip
    settings = ClientSettings(name="a", dataset=f"local:{root}")
    return Client(settings, terms, scratch, cache).join()


def leaves(value: Any, path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], Any]]:
    """Every value at the bottom of a JSON document, with the keys above it."""
    if isinstance(value, dict):
        return [leaf for key, inner in value.items() for leaf in leaves(inner, (*path, key))]
    if isinstance(value, list):
        return [leaf for inner in value for leaf in leaves(inner, path)]
    return [(path, value)]


@pytest.fixture
def member(recordings, tmp_path, kept) -> Member:
    return join(recordings["a"], tmp_path, kept)


def test_every_number_is_a_count_a_moment_or_an_episodes_number(member) -> None:
    numbers = [(p, v) for p, v in leaves(json.loads(member.model_dump_json())) if isinstance(v, int | float)]
    moments = [(p, v) for p, v in numbers if p[0] == "statistics"]
    assert {p[1:] for p, _ in moments} == {(what, name) for what in ("state", "action") for name in MOMENTS}
    assert len(moments) == 2 * (1 + 4 * 6)
    others = {p for p, _ in numbers if p[0] != "statistics"}
    assert others == {
        ("report", "fps"), ("report", "episodes"), ("report", "frames"), ("split", "train"), ("split", "held_out"),
        ("train_frames",),
    }  # fmt: skip


def test_no_frame_is_in_it(member, recordings) -> None:
    rows = pq.read_table(recordings["a"] / "data/chunk-000/file-000.parquet")
    said = [v for _, v in leaves(json.loads(member.model_dump_json())) if isinstance(v, float)]
    columns = [np.stack(rows[key].to_numpy()).astype(np.float64) for key in ("observation.state", "action")]
    extremes = [edge for frames in columns for edge in (*frames[:27].min(axis=0), *frames[:27].max(axis=0))]
    for frames in columns:
        inside = np.setdiff1d(frames, extremes)
        assert len(inside) > 200
        assert not np.isin(said, inside).any()


def test_what_is_said_does_not_grow_with_the_frames(record, tmp_path, kept) -> None:
    sizes = []
    for length in (12, 60):
        root = record(tmp_path / str(length), 5, (length, length, length))
        said = leaves(json.loads(join(root, tmp_path / "scratch", kept).model_dump_json()))
        sizes.append(sorted(p for p, _ in said))
    assert sizes[0] == sizes[1]


def test_texts_are_names_tasks_and_digests(member, recordings) -> None:
    texts = [(p, v) for p, v in leaves(json.loads(member.model_dump_json())) if isinstance(v, str)]
    assert dict(texts)["report", "root"] == ""
    digests = [v for p, v in texts if p in {("train_digests",), ("held_out_digests",)}]
    assert [len(d) for d in digests] == [64] * 3
    known = {
        ("client",), ("dataset",), ("report", "dataset"), ("report", "root"), ("report", "robot_type"),
        ("report", "cameras"), ("report", "state_names"), ("report", "action_names"), ("report", "tasks"),
        ("train_digests",), ("held_out_digests",), ("report", "units"),
    }  # fmt: skip
    findings = {("report", "findings", k) for k in ("rule", "severity", "where", "found", "expected", "repair")}
    assert {p for p, _ in texts} <= known | findings
    assert str(recordings["a"].parent) not in "".join(v for p, v in texts if "dataset" not in p)

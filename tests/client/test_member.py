"""What a client reports when it joins: counts, moments, digests and names. Never a frame, never a path."""

import json
import shutil
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from zk0.client.client import Client
from zk0.errors import DatasetError
from zk0.records import Member
from zk0.settings.dataset_settings import ClientSettings, ContractSettings, DataSettings, SimulatorSettings
from zk0.settings.plans import SessionTerms

MOMENTS = {"count", "mean", "std", "min", "max"}


def join(
    root: Path, scratch: Path, cache: Path, repair: Literal["refuse", "repair"] = "refuse", allow_repair: bool = True
) -> Member:
    data = DataSettings(repair=repair)
    terms = SessionTerms(session="s", seed=1, contract=ContractSettings(), data=data, simulator=SimulatorSettings())
    settings = ClientSettings(name="a", dataset=f"local:{root}", allow_repair=allow_repair)
    return Client(settings, terms, scratch, cache).join()


def leaves(value: Any, path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], Any]]:
    """Every scalar of a JSON document, with the keys that lead to it."""
    if isinstance(value, dict):
        return [leaf for key, inner in value.items() for leaf in leaves(inner, (*path, key))]
    if isinstance(value, list):
        return [leaf for inner in value for leaf in leaves(inner, path)]
    return [(path, value)]


@pytest.fixture
def member(recordings, tmp_path, shared_cache) -> Member:
    return join(recordings["a"], tmp_path, shared_cache)


def test_every_number_is_a_count_a_moment_or_an_episode_index(member) -> None:
    numbers = [(p, v) for p, v in leaves(json.loads(member.model_dump_json())) if isinstance(v, int | float)]
    moments = [(p, v) for p, v in numbers if p[0] == "statistics"]
    assert {p[1:] for p, _ in moments} == {(what, name) for what in ("state", "action") for name in MOMENTS}
    assert len(moments) == 2 * (1 + 4 * 6)
    others = {p for p, _ in numbers if p[0] != "statistics"}
    assert others == {
        ("report", "fps"), ("report", "episodes"), ("report", "frames"), ("split", "train"), ("split", "held_out"),
        ("train_frames",),
    }  # fmt: skip


def test_the_report_holds_no_frame(member, recordings) -> None:
    rows = pq.read_table(recordings["a"] / "data/chunk-000/file-000.parquet")
    sent = [v for _, v in leaves(json.loads(member.model_dump_json())) if isinstance(v, float)]
    columns = [np.stack(rows[key].to_numpy()).astype(np.float64) for key in ("observation.state", "action")]
    extremes = [edge for frames in columns for edge in (*frames[:27].min(axis=0), *frames[:27].max(axis=0))]
    for frames in columns:
        inside = np.setdiff1d(frames, extremes)
        assert len(inside) > 200
        assert not np.isin(sent, inside).any()


def test_the_report_does_not_grow_with_the_frames(record, tmp_path, shared_cache) -> None:
    sizes = []
    for length in (12, 60):
        root = record(tmp_path / str(length), 5, (length, length, length))
        scalars = leaves(json.loads(join(root, tmp_path / "scratch", shared_cache).model_dump_json()))
        sizes.append(sorted(p for p, _ in scalars))
    assert sizes[0] == sizes[1]


def test_texts_are_names_tasks_and_digests(member, recordings) -> None:
    texts = [(p, v) for p, v in leaves(json.loads(member.model_dump_json())) if isinstance(v, str)]
    assert dict(texts)["report", "root"] == ""
    digests = [v for p, v in texts if p in {("train_digests",), ("held_out_digests",)}]
    assert [len(d) for d in digests] == [64] * 3
    known = {
        ("client",), ("dataset",), ("report", "dataset"), ("report", "root"), ("report", "robot_type"),
        ("report", "cameras"), ("report", "state_names"), ("report", "action_names"), ("report", "tasks"),
        ("train_digests",), ("held_out_digests",), ("path_sketches",), ("report", "units"),
    }  # fmt: skip
    findings = {("report", "findings", k) for k in ("rule", "severity", "where", "found", "expected", "repair")}
    assert {p for p, _ in texts} <= known | findings
    assert str(recordings["a"].parent) not in "".join(v for p, v in texts if "dataset" not in p)


def broken(root: Path, target: Path) -> Path:
    """A copy of a recording that holds every row twice."""
    shutil.copytree(root, target)
    file = next((target / "data").rglob("*.parquet"))
    table = pq.read_table(file)
    pq.write_table(pa.concat_tables([table, table]), file)
    return target


def test_a_broken_dataset_is_met_by_its_finding_and_the_repair(recordings, tmp_path, shared_cache) -> None:
    root = broken(recordings["a"], tmp_path / "doubled")
    with pytest.raises(DatasetError, match=r"doubled-rows: .* `zk0 data repair .* FOLDER` \(drop-duplicates\)"):
        join(root, tmp_path, shared_cache)


def test_a_label_of_an_older_version_is_met_by_its_finding(recordings, tmp_path, shared_cache) -> None:
    root = Path(shutil.copytree(recordings["a"], tmp_path / "old"))
    info = json.loads((root / "meta/info.json").read_text())
    (root / "meta/info.json").write_text(json.dumps(info | {"codebase_version": "v2.1"}))
    with pytest.raises(DatasetError, match=r"may not take part: .*format-version"):
        join(root, tmp_path, shared_cache)


def test_a_repaired_copy_takes_part_and_the_original_stays(recordings, member, tmp_path) -> None:
    root = broken(recordings["a"], tmp_path / "doubled")
    before = {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in root.rglob("*")}
    repaired = join(root, tmp_path, tmp_path / "cache", repair="repair")
    assert repaired.report.repairs == ("drop-duplicates",)
    assert (repaired.train_digests, repaired.held_out_digests) == (member.train_digests, member.held_out_digests)
    assert repaired.statistics == member.statistics
    assert {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in root.rglob("*")} == before
    (copy,) = (tmp_path / "cache" / "repaired").iterdir()
    stamp = copy.stat().st_mtime_ns
    join(root, tmp_path, tmp_path / "cache", repair="repair")
    assert copy.stat().st_mtime_ns == stamp, "a second joining repaired again"
    with pytest.raises(DatasetError, match="doubled-rows"):
        join(root, tmp_path, tmp_path / "cache", repair="repair", allow_repair=False)


def test_another_number_of_episodes_than_expected_is_refused(recordings, tmp_path, shared_cache) -> None:
    for expected, message in ((3, None), (4, "3 episodes, expected 4 \\(expected_episodes\\)")):
        settings = ClientSettings(name="a", dataset=f"local:{recordings['a']}", expected_episodes=expected)
        terms = SessionTerms(
            session="s", seed=1, contract=ContractSettings(), data=DataSettings(), simulator=SimulatorSettings()
        )
        client = Client(settings, terms, tmp_path, shared_cache)
        if message is None:
            assert client.join().report.episodes == expected
        else:
            with pytest.raises(DatasetError, match=message):
                client.join()


def test_a_healthy_dataset_is_not_copied(recordings, member, tmp_path) -> None:
    assert join(recordings["a"], tmp_path, tmp_path / "cache", repair="repair") == member
    assert not (tmp_path / "cache" / "repaired").exists()

"""Datasets of the Hub: revisions, complete downloads, and what to do if there is none."""

import socket
from pathlib import Path
from typing import Any

import pytest
from full_disk import files_limited_to
from hub_state import Repository

from zk0.data.check import check_dataset
from zk0.data.locate import downloaded_commit, hub_bytes, locate, locate_metadata
from zk0.errors import DatasetError, DiskFull, HubUnavailable

INFO = b'{"codebase_version": "v3.0"}'
NAME = "lab/arm"


@pytest.fixture
def hub(hub_server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A Hub with two commits of one dataset, the first of them tagged v1."""
    from huggingface_hub import constants

    monkeypatch.setenv("HF_ENDPOINT", hub_server.url)
    monkeypatch.setenv("HF_TOKEN", hub_server.token)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", hub_server.url)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub_server.url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    found = hub_server.repositories[f"datasets/{NAME}"] = Repository(private=False)
    found.tags["v1"] = found.commit("first", {"meta/info.json": INFO, "data/old.parquet": b"1"})
    found.commit("second", {"meta/info.json": INFO, "data/new.parquet": b"22"})
    return hub_server


def stored(root: Path) -> set[str]:
    files = (p.relative_to(root) for p in root.rglob("*") if p.is_file())
    return {f.as_posix() for f in files if f.parts[0] != ".cache"}


def test_a_revision_is_a_commit_or_a_tag_in_a_folder_of_its_own(hub, tmp_path) -> None:
    repository = hub.repositories[f"datasets/{NAME}"]
    for revision in ("v1", repository.tags["v1"]):
        root = locate(f"hf:{NAME}@{revision}", tmp_path)
        assert root == tmp_path / "datasets" / "lab" / f"arm@{revision}"
        assert stored(root) == {"meta/info.json", "data/old.parquet"}
        assert downloaded_commit(root) == repository.tags["v1"]
    newest = locate(NAME, tmp_path)
    assert stored(newest) == {"meta/info.json", "data/new.parquet"}
    assert downloaded_commit(newest) == repository.commits[-1][0]


def test_files_that_a_later_commit_removed_do_not_stay(hub, tmp_path) -> None:
    repository = hub.repositories[f"datasets/{NAME}"]
    root = locate(NAME, tmp_path)
    repository.commit("third", {"meta/info.json": INFO, "data/newest.parquet": b"333"})
    assert locate(NAME, tmp_path) == root
    assert stored(root) == {"meta/info.json", "data/newest.parquet"}
    assert downloaded_commit(root) == repository.commits[-1][0]


def test_a_complete_download_is_used_without_the_hub(hub, tmp_path, monkeypatch) -> None:
    from huggingface_hub import constants

    root = locate(NAME, tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    requests = len(hub.requests)
    assert locate(NAME, tmp_path) == root
    assert len(hub.requests) == requests


def test_a_half_download_is_no_dataset(hub, tmp_path, monkeypatch) -> None:
    from huggingface_hub import constants

    hub.status = lambda request: 425 if "new.parquet" in request else None  # huggingface_hub itself does not retry it
    with pytest.raises(HubUnavailable):
        locate(NAME, tmp_path)
    root = tmp_path / "datasets" / "lab" / "arm"
    assert downloaded_commit(root) is None
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(DatasetError, match="HF_HUB_OFFLINE is set"):
        locate(NAME, tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    hub.status = lambda request: None
    assert stored(locate(NAME, tmp_path)) == {"meta/info.json", "data/new.parquet"}


@pytest.mark.parametrize("ask", [locate, locate_metadata, lambda uri, _: hub_bytes(uri)])
def test_a_hub_that_refuses_connections_may_come_back(hub, tmp_path, monkeypatch, ask) -> None:
    from huggingface_hub import constants

    with socket.socket() as listener:  # bound, but it does not listen
        listener.bind(("127.0.0.1", 0))
        closed = f"http://127.0.0.1:{listener.getsockname()[1]}"
        monkeypatch.setattr(constants, "ENDPOINT", closed)
        monkeypatch.setenv("HF_ENDPOINT", closed)
        template = closed + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        with pytest.raises(HubUnavailable, match=r"lab/arm: the Hub does not respond \(ConnectError: .*later attempt"):
            ask(NAME, tmp_path)


def test_a_download_that_does_not_fit(hub, tmp_path) -> None:
    hub.repositories[f"datasets/{NAME}"].commit("third", {"meta/info.json": INFO, "data/new.parquet": bytes(50_000)})
    with (
        files_limited_to(20_000),
        pytest.raises(DiskFull, match=r"lab/arm: cannot be written: .*; free some space"),
    ):
        locate(NAME, tmp_path)
    assert downloaded_commit(tmp_path / "datasets" / "lab" / "arm") is None
    assert stored(locate(NAME, tmp_path)) == {"meta/info.json", "data/new.parquet"}


def test_a_folder_without_its_scheme(healthy, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(healthy.parent)
    with pytest.raises(DatasetError, match=r"healthy: a dataset in a folder; expected local:\./healthy"):
        locate("./healthy", tmp_path)


def test_metadata_of_a_revision_is_no_complete_download(hub, tmp_path) -> None:
    root = locate_metadata(f"{NAME}@v1", tmp_path)
    assert stored(root) == {"meta/info.json"}
    assert downloaded_commit(root) is None


def test_a_revision_that_is_not_there(hub, tmp_path) -> None:
    with pytest.raises(DatasetError, match="lab/arm has no revision v9; name a commit, tag or branch"):
        locate(f"{NAME}@v9", tmp_path)


def test_a_dataset_that_may_be_private(hub, tmp_path) -> None:
    with pytest.raises(DatasetError, match="if it is private, set HF_TOKEN to a token that may read it"):
        locate("lab/nothing", tmp_path)


def test_a_gated_dataset_says_where_its_terms_are(hub, tmp_path, monkeypatch) -> None:
    import hub_handler

    def gated(handler: Any, *_: Any) -> None:
        handler._send(403, {"error": "gated"}, {"X-Error-Code": "GatedRepo"})

    routes = [(p, gated if "dataset_info" in h.__name__ else h) for p, h in hub_handler.ROUTES]
    monkeypatch.setattr(hub_handler, "ROUTES", routes)
    with pytest.raises(DatasetError, match=f"accept its terms on {hub.url}/datasets/lab/arm and set HF_TOKEN"):
        locate(NAME, tmp_path)


@pytest.mark.parametrize(
    ("status", "error", "advice"),
    [
        (401, DatasetError, "set HF_TOKEN to a token that"),
        (403, DatasetError, "set HF_TOKEN to a token that is valid and may read it"),
        (429, HubUnavailable, "status 429; a later attempt may succeed"),
        (502, HubUnavailable, "status 502; a later attempt may succeed"),
        (524, HubUnavailable, "status 524; a later attempt may succeed"),
    ],
)
def test_what_to_do_about_a_refusal(hub, tmp_path, status, error, advice) -> None:
    hub.status = lambda request: status if "/api/datasets/" in request else None
    with pytest.raises(error, match=advice):
        locate(NAME, tmp_path)


def test_a_repository_without_metadata_is_no_dataset(hub, tmp_path) -> None:
    hub.repositories[f"datasets/{NAME}"].commit("third", {"README.md": b"x"})
    with pytest.raises(DatasetError, match="expected a LeRobot dataset, which has that file"):
        locate_metadata(NAME, tmp_path)


@pytest.mark.parametrize("uri", ["lab/arm@", "lab/arm@../x", "lab/arm@a/b", "hf:arm@v1", "ftp:lab/arm", "lab/arm@-x"])
def test_names_that_are_no_datasets(uri, tmp_path) -> None:
    with pytest.raises(DatasetError, match="not a dataset; expected hf:user/name, hf:user/name@REVISION"):
        locate(uri, tmp_path)


def test_recordings_of_the_simulator_are_no_dataset_that_is_there(tmp_path) -> None:
    with pytest.raises(DatasetError, match="sim:lift-red: recordings that a session makes in the simulator"):
        locate("sim:lift-red", tmp_path)


@pytest.mark.parametrize("content", [b"", b"main\n", b"a" * 39, b"a" * 41, b"\xff" * 40])
def test_a_commit_is_forty_hexadecimal_digits(content, tmp_path) -> None:
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "zk0-commit").write_bytes(content)
    assert downloaded_commit(tmp_path) is None


def test_the_report_names_the_commit(healthy, tmp_path) -> None:
    import shutil

    root = Path(shutil.copytree(healthy, tmp_path / "copy"))
    assert check_dataset(root, dataset="x", quick=True).commit is None
    (root / ".cache").mkdir()
    (root / ".cache" / "zk0-commit").write_text("a" * 40 + "\n")
    assert check_dataset(root, dataset="x", quick=True).commit == "a" * 40


def test_the_hub_names_the_size_of_a_dataset(hub, tmp_path) -> None:
    assert hub_bytes(f"hf:{NAME}") == len(INFO) + 2
    assert hub_bytes(f"hf:{NAME}@v1") == len(INFO) + 1
    with pytest.raises(DatasetError):
        hub_bytes("hf:lab/other")
    assert list(tmp_path.rglob("*.parquet")) == []


@pytest.mark.parametrize("name", ["../evil", "data/../../../evil", "data/./x", "/etc/evil", "..\\evil", "a//b", "a\nb"])
def test_a_file_that_would_lie_elsewhere(hub, tmp_path, name) -> None:
    """Git stores no such files; whoever answers in place of the Hub may name them."""
    hub.repositories[f"datasets/{NAME}"].commit("third", {"meta/info.json": INFO, name: b"x"})
    cache, requests = tmp_path / "a" / "cache", len(hub.requests)
    with pytest.raises(DatasetError, match="the Hub names a file"):
        locate(NAME, cache)
    assert len(hub.requests) == requests + 1
    assert not cache.exists()

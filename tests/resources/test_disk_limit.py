"""A session's folder is held within what the session names at its start."""

import os
from pathlib import Path
from typing import Any

import pytest

from zk0.errors import DiskFull
from zk0.resources.disk_limit import announce_disk_use, check_disk_limit, disk_limit, folder_shares
from zk0.resources.disk_use import DiskPart, DiskUse
from zk0.settings.loading import load_session
from zk0.settings.session import Session

SMOKE = Path(__file__).parents[2] / "deployments/sessions/smoke.toml"
MEGABYTE = 10**6


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with 3 MB in two files, one of which has two names."""
    for name, size in (("round-001/weights", 2), ("models/policy", 1)):
        file = tmp_path / name
        file.parent.mkdir()
        file.write_bytes(bytes(size * MEGABYTE))
    os.link(tmp_path / "round-001/weights", tmp_path / "models/weights")
    (tmp_path / "elsewhere").symlink_to(tmp_path / "round-001/weights")
    return tmp_path


def smoke(**changes: Any) -> Session:
    return load_session(SMOKE, changes)


def announced(session: int, cache: int = 9) -> DiskUse:
    places = (("session", session), ("cache", cache))
    return DiskUse(
        parts=tuple(
            DiskPart(purpose="test", place=place, peak_bytes=size * MEGABYTE, kept_bytes=0) for place, size in places
        )
    )


def test_each_file_counts_once(folder: Path) -> None:
    found = [(share.name, share.bytes // MEGABYTE) for share in folder_shares(folder)]
    assert found == [("models", 3)]  # its name comes first
    (folder / "models/weights").unlink()
    assert [share.name for share in folder_shares(folder)] == ["round-001", "models"]


def test_what_the_session_named_is_the_limit(folder: Path) -> None:
    check_disk_limit(smoke(), folder)  # an older session named nothing
    assert disk_limit(smoke(), folder) is None
    announce_disk_use(folder, announced(4))
    assert disk_limit(smoke(), folder) == 4 * MEGABYTE
    check_disk_limit(smoke(), folder)
    announce_disk_use(folder, announced(2, cache=100))
    with pytest.raises(DiskFull) as raised:
        check_disk_limit(smoke(), folder)
    assert str(raised.value) == (
        f"{folder}: holds 3 MB and at its start the session named up to 2 MB (largest: models 3 MB, disk_use.json "
        "1 MB); remove what is not the session's, or allow more with --set disk_limit_gb=0.0038"
    )


def test_a_session_of_any_nodes_has_no_limit_but_the_setting(folder: Path) -> None:
    announce_disk_use(folder, announced(2))
    network = SMOKE.parent / "so100-network.toml"
    assert disk_limit(load_session(network), folder) is None
    assert disk_limit(load_session(network, {"disk_limit_gb": 5.0}), folder) == 5 * 10**9


def test_the_setting_replaces_it(folder: Path) -> None:
    announce_disk_use(folder, announced(2))
    check_disk_limit(smoke(disk_limit_gb=0.0031), folder)
    with pytest.raises(DiskFull, match="holds 3 MB and disk_limit_gb allows up to 1 MB"):
        check_disk_limit(smoke(disk_limit_gb=0.001), folder)


def test_a_round_that_is_recorded_is_checked(folder: Path) -> None:
    """The round stays recorded, so that the session can go on with another limit."""
    from round_histories import finished_round

    from tasks.rounds import record_round
    from zk0.audit.ledger import Ledger

    with pytest.raises(DiskFull):
        record_round.fn(smoke(disk_limit_gb=0.001), str(folder), finished_round(0, None, None, {}))
    assert len(Ledger(folder / "ledger.jsonl").read()) == 1

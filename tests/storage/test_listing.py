"""A folder that cannot be listed is an error: results, digests and published files must not be fewer without a word."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from zk0.errors import may_pass
from zk0.report.video.motion_analysis import has_videos
from zk0.storage.listing import files_below
from zk0.storage.results import read_episode_videos, read_rollouts
from zk0.storage.sha256_sums import sha256_of_folder


def test_all_files_and_none_where_there_is_no_folder(tmp_path: Path) -> None:
    for name in ("one.txt", "below/two.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert sorted(files_below(tmp_path)) == [tmp_path / "below/two.txt", tmp_path / "one.txt"]
    assert list(files_below(tmp_path / "missing")) == []


@pytest.mark.parametrize("read", [read_rollouts, read_episode_videos, has_videos, sha256_of_folder])
def test_a_disk_that_is_away_while_a_folder_is_listed(
    read: Callable[[Path], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "below").mkdir()
    scandir = os.scandir

    def stale(path: Any) -> Any:
        if Path(path).name == "below":
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", stale)
    with pytest.raises(OSError, match="Stale") as caught:
        read(tmp_path)
    assert may_pass(caught.value)

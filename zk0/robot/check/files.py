"""Rules about which files there are."""

from collections.abc import Iterator

import numpy as np

from zk0.records import Finding
from zk0.robot.check.contents import Contents
from zk0.robot.check.say import some
from zk0.robot.frames import Frames

LEFT_OVER = ("meta/episodes.jsonl", "meta/tasks.jsonl", "meta/episodes_stats.jsonl")


def outside_folder(contents: Contents) -> Iterator[Finding]:
    """Links that lead out of the folder, pipes and the like are not opened."""
    for path, why in contents.folder.refused:
        yield Finding(
            rule="outside-folder", where=path, found=why, expected="a plain file in the folder", repair="remove-orphans"
        )


def doubled_files(contents: Contents) -> Iterator[Finding]:
    """Files beside those that the episode table names; LeRobot reads every parquet below data/ all the same.

    With the same episodes in them, all frames are there twice (v2.1 files left beside v3.0 ones).
    """
    copies = [f for f in contents.stray if _holds_same(f, contents)]
    others = [f for f in contents.stray if f not in copies]
    if copies:
        yield Finding(
            rule="doubled-files",
            where=some([f.file for f in copies]),
            found=f"{sum(f.rows for f in copies)} rows that other files hold too",
            expected="every episode in one file",
            repair="remove-orphans",
        )
    if others:
        yield Finding(
            rule="orphan-data",
            where=some([f.file for f in others]),
            found=f"{len(others)} files ({sum(f.rows for f in others)} rows) that no episode names",
            expected="only files that the episode table names",
            repair="remove-orphans",
        )


def orphan_files(contents: Contents) -> Iterator[Finding]:
    """Videos, pictures and older metadata that nothing refers to."""
    if contents.info is None or contents.episodes is None:
        return
    named = {clip.file for e in contents.episodes for clip in e.clips.values()}
    orphans = [f for f in contents.folder.under("videos") if f not in named]
    if not any(contents.info.features[c].dtype == "image" for c in contents.info.cameras):
        orphans += contents.folder.under("images")
    if contents.info.is_v3:
        orphans += [f for f in LEFT_OVER if f in contents.folder]
    if orphans:
        yield Finding(
            rule="orphan-files",
            severity="warning",
            where=some(orphans),
            found=f"{len(orphans)} files that nothing refers to",
            expected="only files that belong to an episode",
            repair="remove-orphans",
        )


def _holds_same(stray: Frames, contents: Contents) -> bool:
    rows = contents.rows
    if rows is None or stray.episode_index is None or stray.state is None or rows.state is None:
        return False
    spans = [rows.spans.get(int(e)) for e in np.unique(stray.episode_index)]
    if not spans or any(s is None for s in spans) or stray.state.shape[1:] != rows.state.shape[1:]:
        return False
    kept = np.concatenate([rows.state[s] for s in spans if s is not None])
    return len(kept) == len(stray.state) and bool(np.array_equal(kept, stray.state, equal_nan=True))


RULES = (outside_folder, doubled_files, orphan_files)

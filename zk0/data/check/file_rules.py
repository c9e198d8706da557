"""Rules about the files in the dataset's folder."""

from codecs import BOM_UTF8
from collections.abc import Iterator

import numpy as np

from zk0.data.check.contents import Contents
from zk0.data.check.rule import RuleGroup, Violation
from zk0.data.frame_table import FrameTable
from zk0.name_lists import join_names

FILE_RULES = RuleGroup[[Contents], Violation]("Files", __name__)
OLDER_METADATA = ("meta/episodes.jsonl", "meta/tasks.jsonl", "meta/episodes_stats.jsonl")
"""Metadata of v2.x, which v3.0 does not read."""


@FILE_RULES.rule("outside-folder", repairs=("remove-orphans",))
def outside_folder(contents: Contents) -> Iterator[Violation]:
    """The folder holds regular files only; links that point out of it, pipes and devices are not opened."""
    for path, why in contents.folder.refused:
        yield Violation(path, why, "a regular file in the folder")


@FILE_RULES.rule("byte-order-mark", repairs=("remove-byte-order-mark",))
def byte_order_mark(contents: Contents) -> Iterator[Violation]:
    """JSON files begin without a byte order mark, which some editors add and LeRobot does not read."""
    texts = (f for f in contents.folder.files_under("meta") if f.endswith((".json", ".jsonl")))
    if marked := [f for f in texts if contents.folder.starts_with(f, BOM_UTF8)]:
        yield Violation(join_names(marked), "a byte order mark (EF BB BF)", "JSON from the first byte on")


@FILE_RULES.rule("doubled-files", repairs=("remove-orphans",))
def doubled_files(contents: Contents) -> Iterator[Violation]:
    """No parquet file repeats episodes of the files that the episode table names, such as v2.1 files beside v3.0 ones.

    LeRobot reads every parquet file below data/, so all frames would be there twice.
    """
    copies = [t for t in contents.orphan_tables if _is_copy(t, contents)]
    if copies:
        found = f"{sum(t.rows for t in copies)} rows that other files hold too"
        yield Violation(join_names([t.file for t in copies]), found, "every episode in one file")


@FILE_RULES.rule("orphan-data", repairs=("remove-orphans",))
def orphan_data(contents: Contents) -> Iterator[Violation]:
    """The episode table names every parquet file below `data/`; LeRobot would read others too."""
    others = [t for t in contents.orphan_tables if not _is_copy(t, contents)]
    if others:
        yield Violation(
            where=join_names([t.file for t in others]),
            found=f"{len(others)} files ({sum(t.rows for t in others)} rows) that no episode names",
            expected="only files that the episode table names",
        )


@FILE_RULES.rule("orphan-files", severity="warning", repairs=("remove-orphans",))
def orphan_files(contents: Contents) -> Iterator[Violation]:
    """Every video, image and metadata file belongs to an episode or to the format version."""
    if contents.info is None or contents.episodes is None:
        return
    named = {file for e in contents.episodes for file in contents.videos_of_episode(e)}
    orphans = [f for f in contents.folder.files_under("videos") if f not in named]
    if not any(contents.info.features[c].dtype == "image" for c in contents.info.cameras):
        orphans += contents.folder.files_under("images")
    if contents.info.is_v3:
        orphans += [f for f in OLDER_METADATA if f in contents.folder]
    if orphans:
        found = f"{len(orphans)} files that nothing refers to"
        yield Violation(join_names(orphans), found, "only files that belong to an episode")


def _is_copy(orphan: FrameTable, contents: Contents) -> bool:
    """Return whether an orphan holds the same episodes with the same states as the files that the table names."""
    rows = contents.rows
    if rows is None or orphan.episode_index is None or orphan.state is None or rows.state is None:
        return False
    spans = [rows.spans.get(int(e)) for e in np.unique(orphan.episode_index)]
    if not spans or any(s is None for s in spans) or orphan.state.shape[1:] != rows.state.shape[1:]:
        return False
    stored = np.concatenate([rows.state[s] for s in spans if s is not None])
    return len(stored) == len(orphan.state) and bool(np.array_equal(stored, orphan.state, equal_nan=True))

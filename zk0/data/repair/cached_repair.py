"""Repair of a dataset before it joins a session: into the cache, under the digest of its content."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from zk0.data.check import check_dataset
from zk0.data.locate import downloaded_commit
from zk0.data.repair.repair_dataset import repair_dataset, source_digest


@dataclass(frozen=True)
class UsableDataset:
    """The folder that a session reads: the dataset itself, or its repaired copy in the cache."""

    root: Path
    rename_map: dict[str, str]
    """Feature key in that folder -> key in the contract; empty for a copy, which has the contract's keys."""
    repairs: tuple[str, ...] = ()
    """Names of the repairs that the copy contains."""
    dropped: tuple[int, ...] = ()
    """Episodes of the original that the copy lacks."""
    commit: str | None = None
    """Commit on the Hub of the original; None: it does not come from there."""


def usable_dataset(
    uri: str, root: Path, cache: Path, rename_map: Mapping[str, str], *, may_repair: bool
) -> UsableDataset:
    """Return the dataset, or its repaired copy if one is allowed and the quick check finds an error.

    The original is never written to.

    Args:
        uri: name of the dataset in messages.
        root: its folder.
        cache: private folder; copies lie in `repaired`.
        rename_map: feature key in the dataset -> key in the contract.
        may_repair: whether session and client allow a repair.

    Raises:
        DatasetError: an error cannot be repaired.
    """
    if not may_repair or not check_dataset(root, dataset=uri, quick=True, rename_map=rename_map).errors:
        return UsableDataset(root, dict(rename_map), commit=downloaded_commit(root))
    source = source_digest(root, rename_map)
    target = cache / "repaired" / source[:32]
    done, _ = repair_dataset(root, target, dataset=uri, rename_map=rename_map, source=source)
    return UsableDataset(target, {}, done.repairs, done.dropped, downloaded_commit(root))

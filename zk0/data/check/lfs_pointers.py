"""Git LFS pointers: short text files that stand for data that was not downloaded."""

from zk0.data.check.reading_rules import LFS_POINTERS
from zk0.data.check.rule import Violation
from zk0.data.dataset_folder import DatasetFolder
from zk0.name_lists import join_names
from zk0.records import Finding

LFS_PREFIX, MAX_POINTER_BYTES = b"version https://git-lfs", 1024


def find_lfs_pointers(folder: DatasetFolder) -> Finding | None:
    """Return the finding that names all Git LFS pointers of a dataset; None if there are none."""
    small = (f for f, size in folder.sizes.items() if 0 < size <= MAX_POINTER_BYTES)
    if found := sorted(f for f in small if folder.starts_with(f, LFS_PREFIX)):
        what = f"{len(found)} Git LFS pointers instead of files"
        return LFS_POINTERS.finding(Violation(join_names(found, 3), what, "the files: run `git lfs pull` in the clone"))
    return None

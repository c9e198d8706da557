"""What is wrong with a parquet file that cannot be read."""

from zk0.data.dataset_folder import BrokenFile, DatasetFolder, raise_if_passing
from zk0.errors import first_line

MAGIC = b"PAR1"
"""First and last bytes of a parquet file; the last ones follow the index of its content."""


def unreadable_parquet(folder: DatasetFolder, file: str, error: BaseException) -> BrokenFile:
    """Return the error that says why a parquet file cannot be read."""
    raise_if_passing(error, file)
    is_begun = folder.starts_with(file, MAGIC) and folder.sizes.get(file, 0) > 0
    if is_begun and (folder.sizes[file] <= len(MAGIC) or not folder.ends_with(file, MAGIC)):
        found = f"parquet without its end ({folder.sizes[file]} bytes): the recording or the copy was interrupted"
        return BrokenFile(file, found, "parquet that was written to its end")
    return BrokenFile(file, f"a file that is not readable parquet ({first_line(error, 120)})", "parquet")

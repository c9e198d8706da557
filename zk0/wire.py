"""What the file of an update holds: whatever travelled, the server's arithmetic reads dense weights."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from zk0.adapter import MergedWeights
from zk0.records import Update
from zk0.weights import Source, open_weights


@contextmanager
def open_update(update: Update, anchor: Source) -> Iterator[Source]:
    """The trained weights of an update, dense, with the names, shapes and dtypes of the global weights `anchor`.

    Nothing is read yet but the file's head: `read` gives a block of one tensor. `anchor` must stay open meanwhile.

    Raises:
        CheckpointError: no file, or not a whole safetensors file.
        UpdateError: it does not hold the factors of the adapters that the update names.
    """
    with open_weights(Path(update.path)) as file:
        yield file if update.adapters is None else MergedWeights(anchor, file, update.adapters)

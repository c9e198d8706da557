"""Digests of weights, and checks of weights against the digest that was recorded for them."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from blake3 import blake3
from numpy.typing import NDArray

from zk0.errors import CheckpointError
from zk0.weights.files import Weights, WeightsFile, open_weights
from zk0.weights.tensor_spec import checked_spec, digest_header, little_endian_bytes


def digest(weights: Weights) -> str:
    """Return the BLAKE3 digest (64 hex digits) of weights; neither their order nor their storage changes it.

    Canonical form: for each name in ascending order of code points, the UTF-8 bytes of the JSON array
    `["name","dtype",[dimension,...]]` (no blanks, non-ASCII as it is; dtype as numpy names it), a line feed, then
    the values in C order and little-endian.

    Raises:
        CheckpointError: a dtype that a file cannot hold.

    >>> import numpy as np
    >>> digest({"w": np.zeros((2, 3), np.float32)}) == blake3(b'["w","float32",[2,3]]\\n' + bytes(24)).hexdigest()
    True
    """
    found = blake3()
    for name in sorted(weights):
        if isinstance(weights, WeightsFile):
            found.update(digest_header(name, weights.specs[name]))
            for block in weights.blocks(name):
                found.update(little_endian_bytes(block))
        else:
            found.update(digest_header(name, checked_spec(name, weights[name])))
            found.update(little_endian_bytes(weights[name]))
    return found.hexdigest()


def load_weights(path: Path, expected: str | None = None) -> dict[str, NDArray[Any]]:
    """Load all weights of a file into memory.

    Raises:
        CheckpointError: no file, not a complete safetensors file, or its digest is not `expected`.
    """
    with open_weights(path) as file:
        weights = dict(file)
    if expected is not None:
        _check_digest(path, weights, expected)
    return weights


def check_weights(path: Path, expected: str) -> None:
    """Check the digest of a file's weights; memory is a block.

    Raises:
        CheckpointError: no file, not a complete safetensors file, or its digest is not `expected`.
    """
    with open_weights(path) as file:
        _check_digest(path, file, expected)


@contextmanager
def open_checked(path: Path, expected: str) -> Iterator[WeightsFile]:
    """Open a file of weights after checking its digest.

    Several clients train from one file: the process does not hash it again until its size or time changes.

    Raises:
        CheckpointError: no file, not a complete one, or its digest is not `expected`.
    """
    _check_once(path, expected)
    with open_weights(path) as file:
        yield file


def _check_once(path: Path, expected: str) -> None:
    try:
        found = path.stat()
    except OSError as e:
        raise CheckpointError(f"{path}: cannot be read ({e.strerror}); expected a safetensors file") from e
    _check_file_state(path, expected, (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns))


@lru_cache(maxsize=4)
def _check_file_state(path: Path, expected: str, state: tuple[int, ...]) -> None:
    check_weights(path, expected)


def _check_digest(path: Path, weights: Weights, expected: str) -> None:
    if (found := digest(weights)) != expected:
        raise CheckpointError(
            f"{path}: digest {found[:12]}, expected {expected[:12]}: not the weights that were recorded"
        )

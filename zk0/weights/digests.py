"""Digests of weights, and checks of weights against the digest that was recorded for them.

A digest names its algorithm: SHA-256 has the prefix `sha256:`, BLAKE3 has none. So whoever compares weights with a
recorded digest computes the same one, and a session keeps the algorithm that its first digest has.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

from blake3 import blake3
from numpy.typing import NDArray

from zk0.errors import CheckpointError
from zk0.records import DigestAlgorithm
from zk0.weights.files import Weights, WeightsFile, open_weights
from zk0.weights.tensor_spec import checked_spec, digest_header, little_endian_bytes

_SHA256_PREFIX = "sha256:"


class WeightsHash(Protocol):
    """Takes the canonical form of weights in pieces."""

    def update(self, data: Any, /) -> Any: ...
    def hexdigest(self) -> str: ...


def algorithm_of(digest: str) -> DigestAlgorithm:
    """Return the algorithm of a digest.

    >>> algorithm_of("sha256:0a1b"), algorithm_of("0a1b")
    ('sha256', 'blake3')
    """
    return "sha256" if digest.startswith(_SHA256_PREFIX) else "blake3"


def algorithm_name(digest: str) -> str:
    """Return the name of a digest's algorithm in text.

    >>> algorithm_name("sha256:0a1b"), algorithm_name("0a1b")
    ('SHA-256', 'BLAKE3')
    """
    return {"blake3": "BLAKE3", "sha256": "SHA-256"}[algorithm_of(digest)]


def new_hash(algorithm: DigestAlgorithm) -> WeightsHash:
    """Return the hash of an algorithm, of nothing yet."""
    found: WeightsHash = hashlib.sha256() if algorithm == "sha256" else blake3()
    return found


def digest_text(found: WeightsHash, algorithm: DigestAlgorithm) -> str:
    """Return the digest of everything that a hash took, with the name of its algorithm."""
    return (_SHA256_PREFIX if algorithm == "sha256" else "") + found.hexdigest()


def digest(weights: Weights, algorithm: DigestAlgorithm = "blake3") -> str:
    """Return the digest (64 hex digits) of weights; neither their order nor their storage changes it.

    Canonical form: for each name in ascending order of code points, the UTF-8 bytes of the JSON array
    `["name","dtype",[dimension,...]]` (no blanks, non-ASCII as it is; dtype as numpy names it), a line feed, then
    the values in C order and little-endian.

    Raises:
        CheckpointError: a dtype that a file cannot hold.

    >>> import numpy as np
    >>> digest({"w": np.zeros((2, 3), np.float32)}) == blake3(b'["w","float32",[2,3]]\\n' + bytes(24)).hexdigest()
    True
    """
    found = new_hash(algorithm)
    for name in sorted(weights):
        if isinstance(weights, WeightsFile):
            found.update(digest_header(name, weights.specs[name]))
            for block in weights.blocks(name):
                found.update(little_endian_bytes(block))
        else:
            found.update(digest_header(name, checked_spec(name, weights[name])))
            found.update(little_endian_bytes(weights[name]))
    return digest_text(found, algorithm)


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
    if (found := digest(weights, algorithm_of(expected))) != expected:
        raise CheckpointError(
            f"{path}: digest {found[:12]}, expected {expected[:12]}: not the weights that were recorded"
        )

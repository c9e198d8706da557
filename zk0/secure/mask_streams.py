"""Masks: key streams of ChaCha20 (RFC 8439) that are added to the words of an update, one block after the other."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from numpy.typing import NDArray

_START = bytes(16)
"""Block counter and nonce. They are zero: each key makes one stream only."""


class Mask(NamedTuple):
    """A mask of words, and whether it is added to them or subtracted."""

    key: bytes
    """32 bytes."""
    is_added: bool

    @property
    def inverse(self) -> "Mask":
        """The mask that removes this one."""
        return Mask(self.key, not self.is_added)


class MaskStreams:
    """Applies masks to words that come in blocks, in the order in which all who know a mask take them.

    Args:
        masks: of all words; one kilobyte of memory for each.
    """

    def __init__(self, masks: Iterable[Mask]) -> None:
        self._streams = [(Cipher(ChaCha20(mask.key, _START), None).encryptor(), mask.is_added) for mask in masks]
        self._zeros, self._stream = b"", np.empty(0, np.uint8)

    def apply(self, words: NDArray[Any]) -> None:
        """Add the next words of each mask to the block in place, modulo the size of a word.

        Args:
            words: unsigned integers, contiguous; little-endian words of the stream are added.
        """
        if self._stream.size != words.nbytes:
            self._zeros, self._stream = bytes(words.nbytes), np.empty(words.nbytes, np.uint8)
        for cipher, is_added in self._streams:
            cipher.update_into(self._zeros, self._stream.data)
            mask = self._stream.view(words.dtype.newbyteorder("<"))
            (np.add if is_added else np.subtract)(words, mask, out=words)

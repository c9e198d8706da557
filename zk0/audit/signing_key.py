"""An Ed25519 key pair in two files: the private key, readable by its owner only, and the public key beside it."""

from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from zk0.errors import LedgerError
from zk0.storage.atomic import atomic_write_bytes

_SMALL_ORDER = frozenset(
    bytes.fromhex(key)
    for key in (
        "00" * 32,
        "01" + "00" * 31,
        "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
        "ec" + "ff" * 30 + "7f",
        "ed" + "ff" * 30 + "7f",
        "ee" + "ff" * 30 + "7f",
    )
)
"""Encodings, without the sign bit, of the points of small order: with such a public key, anybody can make a signature,
and one is valid for many texts, or for all (the list of libsodium's `ge25519_has_small_order`)."""


@dataclass(frozen=True)
class SigningKey:
    """The key pair of one signer, created with the first signature."""

    private: Path
    """32 bytes."""
    public: Path
    """64 hex digits."""

    def create(self) -> None:
        """Create the key pair, unless it exists."""
        if not self.private.exists():
            key = Ed25519PrivateKey.generate()
            public = key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
            atomic_write_bytes(self.public, public.hex().encode())
            private = key.private_bytes(Encoding.Raw, PrivateFormat.Raw, NoEncryption())
            atomic_write_bytes(self.private, private, mode=0o600)

    def sign(self, content: bytes) -> str:
        """Return the signature of bytes, 128 hex digits (RFC 8032).

        Raises:
            LedgerError: the private key cannot be read.
        """
        self.create()
        try:
            return Ed25519PrivateKey.from_private_bytes(self.private.read_bytes()).sign(content).hex()
        except ValueError as e:
            raise LedgerError(
                f"{self.private}: not a signing key ({e}); restore it, or move the files that it signed away"
            ) from e

    def public_hex(self) -> str:
        """Return the public key, 64 hex digits.

        Raises:
            LedgerError: its file does not exist or holds none.
        """
        try:
            text = self.public.read_text(encoding="ascii").strip()
            Ed25519PublicKey.from_public_bytes(bytes.fromhex(text))
        except (OSError, ValueError) as e:
            raise LedgerError(
                f"{self.public}: not a public key ({e}); expected the 64 hex digits written with the first signature"
            ) from e
        return text


def is_signed(public_hex: str, content: bytes, signature: str) -> bool:
    """Whether bytes were signed with the private key of a public key (64 hex digits), which is not of small order."""
    try:
        public = bytes.fromhex(public_hex)
        Ed25519PublicKey.from_public_bytes(public).verify(bytes.fromhex(signature), content)
    except (InvalidSignature, ValueError):
        return False
    return bytes((*public[:-1], public[-1] & 0x7F)) not in _SMALL_ORDER

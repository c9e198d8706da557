"""An Ed25519 key pair in two files: the private key, readable by its owner only, and the public key beside it."""

from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from zk0.errors import LedgerError
from zk0.storage.atomic import atomic_write_bytes


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
    """Whether bytes were signed with the private key of a public key (64 hex digits)."""
    try:
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(public_hex)).verify(bytes.fromhex(signature), content)
    except (InvalidSignature, ValueError):
        return False
    return True

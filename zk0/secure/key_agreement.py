"""Keys that two clients agree on: X25519 (RFC 7748), and HKDF-SHA-256 (RFC 5869) for one purpose each."""

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from zk0.errors import FederationError

KEY_BYTES = 32


def public_key(private: bytes) -> bytes:
    """Return the public key of a private key, 32 bytes each."""
    key = X25519PrivateKey.from_private_bytes(private).public_key()
    return key.public_bytes(Encoding.Raw, PublicFormat.Raw)


def check_public_key(public: bytes) -> None:
    """Raise as `agreed_key` where no client could agree on a key with the owner of this public key."""
    agreed_key(bytes(KEY_BYTES), public, b"check")


def agreed_key(private: bytes, public: bytes, purpose: bytes) -> bytes:
    """Return the 32 bytes that the owners of two key pairs agree on for a purpose.

    Args:
        private: of one.
        public: of the other.
        purpose: what the key is used for; keys of two purposes say nothing about each other.

    Raises:
        FederationError: the public key is one of the few with which everybody gets the same result.
    """
    try:
        secret = X25519PrivateKey.from_private_bytes(private).exchange(X25519PublicKey.from_public_bytes(public))
    except ValueError as e:
        raise FederationError(f"{public.hex()[:16]}: not a public key that a client can use ({e})") from e
    return HKDF(SHA256(), KEY_BYTES, salt=None, info=b"zk0 secure aggregation/" + purpose).derive(secret)

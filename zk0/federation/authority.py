"""A private certificate authority, what it signs, and the keys that nodes are known by.

The authority vouches for the server alone. A node shows who it is by signing with its own key (Flower's SuperNode
authentication); the server keeps a list of public keys, and whoever is not on it is nobody.
"""

import base64
import os
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from zk0.errors import SettingsError

_AUTHORITY_DAYS = 3650
_SERVER_DAYS = 397
_RENEW_DAYS = 30


def write_private(path: Path, data: bytes) -> None:
    """A file that only its owner may read, whole or not at all."""
    half = path.with_name(f".{path.name}.{os.getpid()}")
    half.unlink(missing_ok=True)
    with os.fdopen(os.open(half, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(data)
    half.replace(path)


class Authority:
    """`ca.crt` and `ca.key` in a folder, made when they are first needed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @property
    def certificate(self) -> Path:
        """What everyone who is to trust the server must have."""
        return self._folder / "ca.crt"

    def make(self) -> None:
        """A new authority, unless there is one."""
        if self.certificate.is_file():
            return
        key = ec.generate_private_key(ec.SECP384R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "zk0 federation")])
        usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
        builder = _builder(name, name, key.public_key(), _AUTHORITY_DAYS)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        signed = builder.add_extension(usage, critical=True).sign(key, hashes.SHA384())
        write_private(self._folder / "ca.key", _private_pem(key))
        self.certificate.write_bytes(signed.public_bytes(serialization.Encoding.PEM))

    def sign(self, name: str, hosts: Sequence[str]) -> tuple[Path, Path]:
        """`NAME.crt` and `NAME.key` for a server that answers under `hosts`, renewed when they are due.

        Raises:
            SettingsError: the authority's key is not here.
        """
        certificate, key_file = self._folder / f"{name}.crt", self._folder / f"{name}.key"
        if _is_good(certificate, hosts) and key_file.is_file():
            return certificate, key_file
        try:
            ca_key = serialization.load_pem_private_key((self._folder / "ca.key").read_bytes(), None)
        except FileNotFoundError as e:
            raise SettingsError(f"{e.filename}: not there; `zk0bot server init` makes an authority") from e
        if not isinstance(ca_key, ec.EllipticCurvePrivateKey):
            raise SettingsError(f"{self._folder / 'ca.key'}: expected an elliptic-curve key")
        issuer = x509.load_pem_x509_certificate(self.certificate.read_bytes())
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"zk0 {name}")])
        identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key())
        builder = _builder(subject, issuer.subject, key.public_key(), _SERVER_DAYS)
        builder = builder.add_extension(x509.SubjectAlternativeName(_names(hosts)), critical=False)
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        signed = builder.add_extension(identifier, critical=False).sign(ca_key, hashes.SHA384())
        write_private(key_file, _private_pem(key))
        certificate.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
        return certificate, key_file


def make_node_key() -> tuple[bytes, bytes]:
    """A private key as OpenSSH keeps it, and its public key as a line, as `ssh-keygen -t ecdsa -b 384` makes them."""
    key = ec.generate_private_key(ec.SECP384R1())
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    return private, public


def public_line(private: bytes) -> bytes:
    """The public key of a private one that OpenSSH keeps."""
    key = serialization.load_ssh_private_key(private, None)
    return key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)


def wire_key(public_line: bytes) -> bytes:
    """A public key as a SuperNode shows it on the wire.

    Raises:
        SettingsError: it is no key of a node.
    """
    try:
        key = serialization.load_ssh_public_key(public_line)
    except (ValueError, TypeError, UnsupportedAlgorithm) as e:
        raise SettingsError(f"a node's public key that cannot be read ({e})") from e
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise SettingsError("a node's public key that cannot be read (expected ecdsa, as `zk0bot enroll` makes them)")
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def fingerprint(public_line: bytes) -> str:
    """What `ssh-keygen -lf` says of a public key: both sides can compare it by eye."""
    digest = hashes.Hash(hashes.SHA256())
    digest.update(base64.b64decode(public_line.split()[1]))
    return "SHA256:" + base64.b64encode(digest.finalize()).decode().rstrip("=")


def _is_good(certificate: Path, hosts: Sequence[str]) -> bool:
    if not certificate.is_file():
        return False
    found = x509.load_pem_x509_certificate(certificate.read_bytes())
    names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    is_young = found.not_valid_after_utc > datetime.now(UTC) + timedelta(days=_RENEW_DAYS)
    return is_young and list(names) == _names(hosts)


def _names(hosts: Sequence[str]) -> list[x509.GeneralName]:
    found: list[x509.GeneralName] = []
    for host in hosts:
        try:
            found.append(x509.IPAddress(ip_address(host)))
        except ValueError:
            found.append(x509.DNSName(host))
    return found


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: int
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )

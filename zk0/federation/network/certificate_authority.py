"""A private certificate authority for the server's TLS certificates, and the key pairs of nodes.

The authority signs the server's certificates only. A node authenticates itself by signing its requests with its own key
(Flower's SuperNode authentication); the server stores the public keys of the enrolled nodes.
"""

import base64
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
from zk0.storage.atomic import atomic_write_bytes

_AUTHORITY_DAYS = 3650
_SERVER_DAYS = 397
_RENEW_DAYS = 30


class CertificateAuthority:
    """The files `ca.crt` and `ca.key` in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @property
    def certificate(self) -> Path:
        """Certificate of the authority; nodes need it to verify the server."""
        return self._folder / "ca.crt"

    def create(self) -> None:
        """Create the authority, unless it exists."""
        if self.certificate.is_file():
            return
        key = ec.generate_private_key(ec.SECP384R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "zk0 federation")])
        usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
        builder = _builder(name, name, key.public_key(), _AUTHORITY_DAYS)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        signed = builder.add_extension(usage, critical=True).sign(key, hashes.SHA384())
        atomic_write_bytes(self._folder / "ca.key", _private_pem(key), mode=0o600)
        atomic_write_bytes(self.certificate, signed.public_bytes(serialization.Encoding.PEM))

    def server_certificate(self, name: str, hosts: Sequence[str]) -> tuple[Path, Path]:
        """Return certificate and key of a server (`NAME.crt`, `NAME.key`); a certificate near its expiry is renewed.

        Args:
            name: of the files.
            hosts: host names and addresses that the certificate is valid for.

        Raises:
            SettingsError: the authority's key does not exist.
        """
        certificate, key_file = self._folder / f"{name}.crt", self._folder / f"{name}.key"
        if _is_valid(certificate, hosts) and key_file.is_file():
            return certificate, key_file
        try:
            ca_key = serialization.load_pem_private_key((self._folder / "ca.key").read_bytes(), None)
        except FileNotFoundError as e:
            raise SettingsError(f"{e.filename}: does not exist; `zk0bot server init` creates an authority") from e
        if not isinstance(ca_key, ec.EllipticCurvePrivateKey):
            raise SettingsError(f"{self._folder / 'ca.key'}: expected an elliptic-curve key")
        issuer = x509.load_pem_x509_certificate(self.certificate.read_bytes())
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"zk0 {name}")])
        identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key())
        builder = _builder(subject, issuer.subject, key.public_key(), _SERVER_DAYS)
        builder = builder.add_extension(x509.SubjectAlternativeName(_alternative_names(hosts)), critical=False)
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        signed = builder.add_extension(identifier, critical=False).sign(ca_key, hashes.SHA384())
        atomic_write_bytes(key_file, _private_pem(key), mode=0o600)
        atomic_write_bytes(certificate, signed.public_bytes(serialization.Encoding.PEM))
        return certificate, key_file


def make_node_key() -> tuple[bytes, bytes]:
    """Create a key pair like `ssh-keygen -t ecdsa -b 384`: return the private key file and the public key line."""
    key = ec.generate_private_key(ec.SECP384R1())
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    return private, public


def public_key_line(private: bytes) -> bytes:
    """Return the public key line of a private key in OpenSSH format."""
    key = serialization.load_ssh_private_key(private, None)
    return key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)


def public_key_pem(public_line: bytes) -> bytes:
    """Return a public key in the PEM format in which a SuperNode sends it.

    Raises:
        SettingsError: the line is not a node's public key.
    """
    try:
        key = serialization.load_ssh_public_key(public_line)
    except (ValueError, TypeError, UnsupportedAlgorithm) as e:
        raise SettingsError(f"a node's public key cannot be read ({e})") from e
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise SettingsError("a node's public key cannot be read (expected ecdsa, as `zk0bot server enroll` creates it)")
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def check_node_key(private: bytes) -> None:
    """Check a node's private key.

    Raises:
        SettingsError: it is not one of those that `make_node_key` creates.
    """
    try:
        line = public_key_line(private)
    except (ValueError, TypeError, UnsupportedAlgorithm) as e:
        raise SettingsError(f"a node's private key cannot be read ({e})") from e
    public_key_pem(line)


def check_certificate(pem: bytes) -> None:
    """Check the certificate of an authority.

    Raises:
        SettingsError: it cannot be read.
    """
    try:
        x509.load_pem_x509_certificate(pem)
    except ValueError as e:
        raise SettingsError(f"the certificate cannot be read ({e})") from e


def key_fingerprint(public_line: bytes) -> str:
    """Return the fingerprint of a public key as `ssh-keygen -lf` prints it, so that people can compare it."""
    digest = hashes.Hash(hashes.SHA256())
    digest.update(base64.b64decode(public_line.split()[1]))
    return "SHA256:" + base64.b64encode(digest.finalize()).decode().rstrip("=")


def _is_valid(certificate: Path, hosts: Sequence[str]) -> bool:
    if not certificate.is_file():
        return False
    found = x509.load_pem_x509_certificate(certificate.read_bytes())
    names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    is_due = found.not_valid_after_utc <= datetime.now(UTC) + timedelta(days=_RENEW_DAYS)
    return not is_due and list(names) == _alternative_names(hosts)


def _alternative_names(hosts: Sequence[str]) -> list[x509.GeneralName]:
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

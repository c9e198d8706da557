"""Certificates and keys: content, permissions, and renewal."""

import ssl
import stat
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509

from zk0.errors import SettingsError
from zk0.federation.network import certificate_authority as module
from zk0.federation.network.certificate_authority import (
    CertificateAuthority,
    key_fingerprint,
    make_node_key,
    public_key_pem,
)


@pytest.fixture
def authority(tmp_path: Path) -> CertificateAuthority:
    found = CertificateAuthority(tmp_path)
    found.create()
    return found


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_only_the_owner_can_read_private_keys(authority: CertificateAuthority, tmp_path: Path) -> None:
    authority.server_certificate("gateway", ["127.0.0.1"])
    assert {p.name: mode(p) for p in tmp_path.glob("*.key")} == {"ca.key": 0o600, "gateway.key": 0o600}


def test_openssl_accepts_the_certificate(authority: CertificateAuthority, tmp_path: Path) -> None:
    certificate, _ = authority.server_certificate("gateway", ["zk0.example", "10.0.0.7", "::1"])
    command = ["openssl", "verify", "-x509_strict", "-purpose", "sslserver", "-CAfile", str(authority.certificate)]
    result = subprocess.run([*command, str(certificate)], capture_output=True, text=True, check=False)
    assert result.stdout.strip() == f"{certificate}: OK", result.stderr
    found = x509.load_pem_x509_certificate(certificate.read_bytes())
    names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [str(n.value) for n in names] == ["zk0.example", "10.0.0.7", "::1"]
    assert 300 < (found.not_valid_after_utc - datetime.now(UTC)).days < 400
    ssl.create_default_context(cafile=authority.certificate)


def test_an_authority_is_created_once(authority: CertificateAuthority) -> None:
    before = authority.certificate.read_bytes()
    authority.create()
    assert authority.certificate.read_bytes() == before


def test_a_certificate_is_renewed_for_other_names_or_when_it_is_due(
    authority: CertificateAuthority, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate, key = authority.server_certificate("gateway", ["127.0.0.1"])
    first = certificate.read_bytes(), key.read_bytes()
    authority.server_certificate("gateway", ["127.0.0.1"])
    assert (certificate.read_bytes(), key.read_bytes()) == first
    authority.server_certificate("gateway", ["127.0.0.1", "zk0.example"])
    second = certificate.read_bytes()
    assert second != first[0]
    monkeypatch.setattr(module, "_RENEW_DAYS", 400)
    authority.server_certificate("gateway", ["127.0.0.1", "zk0.example"])
    assert certificate.read_bytes() != second


def test_without_its_key_an_authority_signs_nothing(authority: CertificateAuthority, tmp_path: Path) -> None:
    (tmp_path / "ca.key").unlink()
    with pytest.raises(SettingsError, match=r"ca.key: does not exist; `zk0bot server init`"):
        authority.server_certificate("gateway", ["127.0.0.1"])
    assert not (tmp_path / "gateway.key").exists()


def test_ssh_keygen_reads_a_nodes_key(tmp_path: Path) -> None:
    private, public = make_node_key()
    (tmp_path / "key").write_bytes(private)
    (tmp_path / "key").chmod(0o600)
    (tmp_path / "key.pub").write_bytes(public)
    shown = subprocess.run(["ssh-keygen", "-lf", tmp_path / "key.pub"], capture_output=True, text=True, check=True)
    derived = subprocess.run(["ssh-keygen", "-yf", tmp_path / "key"], capture_output=True, check=True)
    assert shown.stdout.split()[:2] == ["384", key_fingerprint(public)]
    assert derived.stdout.split()[:2] == public.split()[:2]


@pytest.mark.parametrize("line", [b"", b"ssh-rsa", b"ecdsa-sha2-nistp384 AAAA", b"hello there"])
def test_an_invalid_public_key(line: bytes) -> None:
    with pytest.raises(SettingsError, match="public key cannot be read"):
        public_key_pem(line)

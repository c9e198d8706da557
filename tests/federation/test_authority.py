"""Certificates and keys: what others read in them, who may read them, and when they are made anew."""

import ssl
import stat
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509

from zk0.errors import SettingsError
from zk0.federation import authority as module
from zk0.federation.authority import Authority, fingerprint, make_node_key, wire_key


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    found = Authority(tmp_path)
    found.make()
    return found


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_private_keys_are_their_owners_alone(authority: Authority, tmp_path: Path) -> None:
    authority.sign("gateway", ["127.0.0.1"])
    assert {p.name: mode(p) for p in tmp_path.glob("*.key")} == {"ca.key": 0o600, "gateway.key": 0o600}


def test_openssl_agrees(authority: Authority, tmp_path: Path) -> None:
    certificate, _ = authority.sign("gateway", ["zk0.example", "10.0.0.7", "::1"])
    command = ["openssl", "verify", "-x509_strict", "-purpose", "sslserver", "-CAfile", str(authority.certificate)]
    said = subprocess.run([*command, str(certificate)], capture_output=True, text=True, check=False)
    assert said.stdout.strip() == f"{certificate}: OK", said.stderr
    found = x509.load_pem_x509_certificate(certificate.read_bytes())
    names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [str(n.value) for n in names] == ["zk0.example", "10.0.0.7", "::1"]
    assert 300 < (found.not_valid_after_utc - datetime.now(UTC)).days < 400
    ssl.create_default_context(cafile=authority.certificate)


def test_an_authority_is_made_once(authority: Authority) -> None:
    before = authority.certificate.read_bytes()
    authority.make()
    assert authority.certificate.read_bytes() == before


def test_a_certificate_is_made_anew_for_other_names_or_when_it_is_due(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificate, key = authority.sign("gateway", ["127.0.0.1"])
    first = certificate.read_bytes(), key.read_bytes()
    authority.sign("gateway", ["127.0.0.1"])
    assert (certificate.read_bytes(), key.read_bytes()) == first
    authority.sign("gateway", ["127.0.0.1", "zk0.example"])
    second = certificate.read_bytes()
    assert second != first[0]
    monkeypatch.setattr(module, "_RENEW_DAYS", 400)
    authority.sign("gateway", ["127.0.0.1", "zk0.example"])
    assert certificate.read_bytes() != second


def test_without_its_key_nothing_is_signed(authority: Authority, tmp_path: Path) -> None:
    (tmp_path / "ca.key").unlink()
    with pytest.raises(SettingsError, match=r"ca.key: not there; `zk0bot server init`"):
        authority.sign("gateway", ["127.0.0.1"])
    assert not (tmp_path / "gateway.key").exists()


def test_a_nodes_key_is_what_ssh_keygen_would_make(tmp_path: Path) -> None:
    private, public = make_node_key()
    (tmp_path / "key").write_bytes(private)
    (tmp_path / "key").chmod(0o600)
    (tmp_path / "key.pub").write_bytes(public)
    shown = subprocess.run(["ssh-keygen", "-lf", tmp_path / "key.pub"], capture_output=True, text=True, check=True)
    derived = subprocess.run(["ssh-keygen", "-yf", tmp_path / "key"], capture_output=True, check=True)
    assert shown.stdout.split()[:2] == ["384", fingerprint(public)]
    assert derived.stdout.split()[:2] == public.split()[:2]


@pytest.mark.parametrize("line", [b"", b"ssh-rsa", b"ecdsa-sha2-nistp384 AAAA", b"hello there"])
def test_what_is_no_key_is_said_so(line: bytes) -> None:
    with pytest.raises(SettingsError, match="public key that cannot be read"):
        wire_key(line)

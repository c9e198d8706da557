"""Signed heads of a ledger: one history, and how two histories are found."""

import hashlib
import json
import stat
from contextlib import suppress
from pathlib import Path

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from pydantic import ValidationError

from zk0.audit.ledger import Ledger
from zk0.audit.ledger_heads import (
    HeadSigner,
    HeadStore,
    LedgerHead,
    SignedHead,
    contradiction,
    ledger_heads,
    read_heads,
)
from zk0.audit.signing_key import SigningKey, is_signed
from zk0.errors import LedgerError
from zk0.records import Checkpoint, RoundRecord


def record(number: int, digest: str = "w") -> RoundRecord:
    checkpoint = Checkpoint(round=number, path="p", digest=f"{digest}{number}", bytes=1)
    root = f"{number:064d}" if number else None
    return RoundRecord(round=number, checkpoint=checkpoint, updates_root=root, seconds=1.0, finished_at="t")


def ledger_of(folder: Path, rounds: int, digest: str = "w") -> Path:
    for number in range(rounds):
        Ledger(folder / "ledger.jsonl").append(record(number, digest))
    return folder / "ledger.jsonl"


@pytest.fixture
def key(tmp_path: Path) -> SigningKey:
    return SigningKey(tmp_path / "server.key", tmp_path / "server.pub")


def test_a_head_is_that_of_the_ledger_and_chained(tmp_path: Path, key: SigningKey) -> None:
    """Roots and chain are computed by hand."""
    ledger = ledger_of(tmp_path, 3)
    signed = HeadSigner(ledger, "s", key).signed()
    assert [one.head.rounds for one in signed] == [1, 2, 3]
    previous = "0" * 64
    for line, one in zip(ledger.read_bytes().splitlines(), signed, strict=True):
        assert one.head.root == hashlib.sha256(line).hexdigest()
        assert one.head.updates_root == json.loads(line)["record"]["updates_root"]
        assert (one.head.previous, one.head.weights) == (previous, f"w{one.head.rounds - 1}")
        previous = hashlib.sha256(one.head.content()).hexdigest()
    assert signed[-1].head.root == Ledger(ledger).root()


def test_only_the_key_of_the_server_signs(tmp_path: Path, key: SigningKey) -> None:
    (first,) = HeadSigner(ledger_of(tmp_path, 1), "s", key).signed()
    assert first.is_signed_by(key.public_hex())
    assert stat.S_IMODE(key.private.stat().st_mode) == 0o600
    other = SigningKey(tmp_path / "other.key", tmp_path / "other.pub")
    other.create()
    assert not first.is_signed_by(other.public_hex())
    assert not first.model_copy(update={"head": first.head.model_copy(update={"rounds": 2})}).is_signed_by(
        key.public_hex()
    )
    assert not first.is_signed_by("no key")
    assert first.head.weights == "w0"
    with pytest.raises(ValidationError, match="should match pattern"):
        LedgerHead.model_validate(first.head.model_dump() | {"weights": "w\nforged"})


@pytest.mark.parametrize("key", ["01" + "00" * 31, "01" + "00" * 30 + "80", "00" * 32, "ec" + "ff" * 30 + "7f"])
def test_a_key_of_small_order_signs_nothing(key: str) -> None:
    """The signature is that of its maker: R is the identity and S is 0, which fits every text under such a key."""
    signature = "01" + "00" * 31 + "00" * 32
    public, accepted = Ed25519PublicKey.from_public_bytes(bytes.fromhex(key)), 0
    for number in range(50):
        with suppress(InvalidSignature):
            public.verify(bytes.fromhex(signature), b"text %d" % number)
            accepted += 1
        assert not is_signed(key, b"text %d" % number, signature)
    assert accepted > 0, "the library alone would accept some"


def test_heads_are_kept_and_continued(tmp_path: Path, key: SigningKey) -> None:
    ledger = ledger_of(tmp_path, 2)
    signer = HeadSigner(ledger, "s", key)
    before = signer.signed()
    Ledger(ledger).append(record(2))
    assert signer.signed()[:2] == before
    assert HeadSigner(ledger, "s", key).signed() == signer.signed() == read_heads(tmp_path / "ledger_heads.jsonl")


@pytest.mark.parametrize("change", ["cut", "rewritten", "gone"])
def test_a_ledger_that_was_signed_cannot_be_cut_or_rewritten(tmp_path: Path, key: SigningKey, change: str) -> None:
    ledger = ledger_of(tmp_path, 3)
    HeadSigner(ledger, "s", key).signed()
    if change == "cut":
        ledger.write_bytes(b"".join(line + b"\n" for line in ledger.read_bytes().splitlines()[:2]))
    else:
        ledger.unlink()
        ledger_of(tmp_path, {"rewritten": 3, "gone": 1}[change], "other")
    with pytest.raises(LedgerError, match="signed and sent"):
        HeadSigner(ledger, "s", key).signed()


def histories(tmp_path: Path, key: SigningKey, *digests: str) -> list[tuple[SignedHead, ...]]:
    """Return the heads of ledgers with four lines and weights of their own."""
    found = []
    for digest in digests:
        folder = tmp_path / f"history-{digest}"
        folder.mkdir()
        found.append(HeadSigner(ledger_of(folder, 4, digest), "s", key).signed())
    return found


def test_contradictory_heads(tmp_path: Path, key: SigningKey) -> None:
    one, two = histories(tmp_path, key, "a", "b")
    assert contradiction(one) is None
    assert contradiction([*one[2:], *one[:1], *one]) is None
    assert contradiction([one[0], one[3]]) is None  # heads between are not known
    assert "two ledgers of the same length" in str(contradiction([*one[:2], two[1]]))
    assert "does not follow" in str(contradiction([one[1], two[2]]))
    assert contradiction([]) is None


def test_a_store_keeps_contradictory_heads_as_evidence(tmp_path: Path, key: SigningKey) -> None:
    one, two = histories(tmp_path, key, "a", "b")
    store = HeadStore(tmp_path / "heads")
    assert (store.sessions(), store.read("s")) == ((), ())
    store.add("s", one[:2])
    store.add("s", (one[1], two[1]))
    assert store.read("s") == (one[0], one[1], two[1])
    assert store.sessions() == ("s",)
    store.file("s").write_text("no head\n")
    with pytest.raises(LedgerError, match="not a file of ledger heads"):
        store.read("s")


def test_a_broken_ledger_has_no_heads(tmp_path: Path) -> None:
    ledger = ledger_of(tmp_path, 3)
    lines = ledger.read_bytes().splitlines()
    ledger.write_bytes(b"\n".join([lines[0], lines[2], b""]))
    with pytest.raises(LedgerError, match="line 2"):
        ledger_heads(ledger, "s")

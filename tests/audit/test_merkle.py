"""The Merkle tree against the test vectors of Certificate Transparency (RFC 6962)."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zk0.audit.merkle import Receipt, make_receipt, merkle_root, update_leaf, verify_receipt
from zk0.errors import LedgerError
from zk0.records import ClientMetrics, Update

LEAVES = ["", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"]
ROOTS = [
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]


def updates(count: int) -> list[Update]:
    metrics = ClientMetrics(
        policy_loss=1, fedprox_loss=0, grad_norm=1, update_norm=1, local_steps=1, lr_first=1, lr_last=1, seconds=1
    )
    common = {"round": 3, "global_digest": "g" * 64, "path": "", "bytes": 1, "dataset": "", "metrics": metrics}
    return [Update(client=f"c{i:02d}", digest=f"{i:064x}", examples=i + 1, **common) for i in range(count)]


@pytest.mark.parametrize("count", range(9))
def test_roots(count: int) -> None:
    assert merkle_root([bytes.fromhex(text) for text in LEAVES[:count]]) == ROOTS[count]


@given(st.integers(1, 40), st.data())
def test_receipt_proves_its_update_and_no_other(count: int, data: st.DataObject) -> None:
    all_of_them = updates(count)
    index = data.draw(st.integers(0, count - 1))
    mine = all_of_them[index]
    receipt = make_receipt(all_of_them, mine.client)
    assert receipt.root == merkle_root([update_leaf(u) for u in all_of_them])
    assert verify_receipt(receipt, mine)
    for changed in (
        mine.model_copy(update={"digest": "f" * 64}),
        mine.model_copy(update={"examples": 999}),
        mine.model_copy(update={"client": "other"}),
        mine.model_copy(update={"round": 4}),
        mine.model_copy(update={"metrics": mine.metrics.model_copy(update={"policy_loss": 0.5})}),
    ):
        assert not verify_receipt(receipt, changed)
    for wrong in (
        receipt.model_copy(update={"root": "0" * 64}),
        receipt.model_copy(update={"index": receipt.index + 1}),
        receipt.model_copy(update={"path": (*receipt.path, "0" * 64)}),
        *([receipt.model_copy(update={"path": receipt.path[:-1]})] if receipt.path else []),
    ):
        assert not verify_receipt(wrong, mine)


def test_a_receipt_names_a_later_round_that_lists_the_update() -> None:
    found = updates(2)
    late, usual = (make_receipt(found, "c00", number) for number in (found[0].round + 2, found[0].round))
    assert (late.round, late.listed_in, late.ledger_round) == (found[0].round, found[0].round + 2, found[0].round + 2)
    assert (usual.listed_in, usual.ledger_round) == (None, found[0].round)
    assert verify_receipt(late, found[0])


def test_client_without_an_update_has_no_receipt() -> None:
    with pytest.raises(LedgerError, match=r"absent: no update among those that the round lists \(c00, c01\)"):
        make_receipt(updates(2), "absent")


def test_receipt_has_log2_n_digests() -> None:
    receipt = make_receipt(updates(100), "c77")
    assert len(receipt.path) <= 7
    assert Receipt.model_validate_json(receipt.model_dump_json()) == receipt

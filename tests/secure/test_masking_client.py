"""What a client does not do, whatever the server asks; and what the server's transcript says about an update."""

import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from zk0.errors import FederationError, UpdateError
from zk0.records import ClientMetrics
from zk0.secure import masking_client
from zk0.secure.mask_streams import Mask, MaskStreams
from zk0.secure.masked_file import save_masked
from zk0.secure.masked_rounds import MaskedRounds
from zk0.secure.messages import Consent, KeyAdvert, Roster, SumRequest, UnmaskingRequest, signed_keys
from zk0.secure.shamir import evaluate_polynomial, join_shares, split_secret
from zk0.secure.unmasking import check_advert, masking_request, remaining_masks, save_sum
from zk0.weights.files import open_weights
from zk0.weights.writer import save_weights

METRICS = ClientMetrics(
    policy_loss=1, fedprox_loss=0, grad_norm=1, update_norm=1, local_steps=1, lr_first=1, lr_last=1, seconds=1
)


def prepared(group: Any) -> tuple[Roster, Callable[..., SumRequest]]:
    """Let all clients mask their updates; return the roster, and a function that makes requests for sums."""
    roster = group.roster()
    group.share(roster)
    for name in roster.names:
        group.mask(roster, name)

    def request(without: str = "") -> SumRequest:
        survivors = tuple(n for n in roster.names if n != without)
        return SumRequest(roster=roster.digest, sharers=roster.names, survivors=survivors)

    return roster, request


def test_no_client_gives_shares_of_both_secrets_of_another(secure_group: Callable[..., Any]) -> None:
    """It agrees to one sum: with the client or without it; a second time it gives the same answer."""
    group = secure_group(6)
    _, request = prepared(group)
    first, second = request(without="c05"), request(without="c04")
    unmasking = UnmaskingRequest(sum=first, consents=group.consents(first))
    revealed = group.reveal(unmasking, first.survivors)
    assert all(not set(one.self_masks) & set(one.mask_keys) for one in revealed.values())
    assert all(set(one.mask_keys) == {"c05"} for one in revealed.values())
    for name in second.survivors[:4]:
        with pytest.raises(FederationError, match="it agrees to one"):
            group.client(name).consent(group.common, second)
        forged = UnmaskingRequest(sum=second, consents=unmasking.consents)
        with pytest.raises(FederationError, match="has not agreed"):
            group.client(name).reveal(group.common, forged)
    assert group.reveal(unmasking, first.survivors) == revealed


def test_a_server_that_names_different_dropouts_to_different_clients_gets_no_share(
    secure_group: Callable[..., Any],
) -> None:
    group = secure_group(6)
    _, request = prepared(group)
    shown = {"c04": ["c00", "c01", "c02"], "c05": ["c03", "c04"]}
    for gone, asked in shown.items():
        consents = group.consents(request(without=gone), asked)
        for name in asked:
            with pytest.raises(FederationError, match="clients have signed the sum, expected 4"):
                group.client(name).reveal(group.common, UnmaskingRequest(sum=request(without=gone), consents=consents))


def test_consents_of_others_repeated_or_forged_ones_do_not_count(secure_group: Callable[..., Any]) -> None:
    group = secure_group(6)
    _, request = prepared(group)
    found = group.consents(request(), ["c00", "c01", "c02"])
    forged = Consent(client="c03", signature=found[0].signature)
    for consents in (found + found, (*found, forged)):
        with pytest.raises(FederationError, match="3 clients have signed the sum"):
            group.client("c00").reveal(group.common, UnmaskingRequest(sum=request(), consents=consents))


def test_a_server_cannot_stand_between_two_clients(secure_group: Callable[..., Any]) -> None:
    """Keys that it replaces are not signed; with a signature of its own, the node's key is another one than before."""
    group, other = secure_group(3), secure_group(3, folder="other")
    roster = group.roster()
    own = next(advert for advert in other.roster().adverts if advert.client == "c01")
    false = [
        roster.advert("c01").model_copy(update={key: getattr(own, key)})
        for key in ("mask_key", "channel_key", "self_mask_digest", "frames")
        if getattr(own, key) != getattr(roster.advert("c01"), key)
    ]
    assert len(false) == 3
    for advert in false:
        with pytest.raises(FederationError, match="c01 are not signed"):
            group.client("c00").share(roster.model_copy(update={"adverts": replaced(roster, advert)}))
    with pytest.raises(FederationError, match="without this client's keys"):
        group.client("c01").share(Roster(common=roster.common, adverts=replaced(roster, own)))
    group.share(roster)
    group.round = 2
    second = group.roster()
    other.round = 2
    own = next(advert for advert in other.roster().adverts if advert.client == "c01")
    with pytest.raises(FederationError, match="another key of c01 than before"):
        group.client("c00").share(Roster(common=second.common, adverts=replaced(second, own)))


@pytest.mark.parametrize("key", ["channel_key", "mask_key"])
@pytest.mark.parametrize("point", ["00" * 32, "01" + "00" * 31, "ec" + "ff" * 30 + "7f", "ed" + "ff" * 30 + "7f"])
def test_a_key_of_small_order_costs_its_own_client(secure_group: Callable[..., Any], key: str, point: str) -> None:
    """Signed as it should be; all other clients would refuse a roster with it."""
    group = secure_group(3)
    advert = group.roster().advert("c01")
    check_advert(group.common, advert)
    values = advert.model_dump(exclude={"signature"}) | {key: point}
    signature = group.client("c01").key.sign(signed_keys(group.common, values))
    with pytest.raises(FederationError, match="not a public key that a client can use"):
        check_advert(group.common, KeyAdvert.model_validate(values | {"signature": signature}))


def replaced(roster: Roster, advert: Any) -> tuple[Any, ...]:
    return tuple(advert if one.client == advert.client else one for one in roster.adverts)


def test_an_update_is_masked_for_one_roster(secure_group: Callable[..., Any]) -> None:
    group = secure_group(4)
    roster, _ = prepared(group)
    with pytest.raises(FederationError, match="another roster"):
        group.client("c00").share(Roster(common=roster.common, adverts=roster.adverts[:3]))
    sealed = {name: found for name, found in group.sealed.items() if name != "c03"}
    with pytest.raises(FederationError, match="masked once"):
        group.mask(roster, "c00", masking_request(roster, sealed, "c00"))
    group.deltas["c00"]["b"] += 1
    with pytest.raises(FederationError, match="not the one that it has masked before"):
        group.mask(roster, "c00")


def test_keys_are_new_while_nothing_is_masked(secure_group: Callable[..., Any]) -> None:
    """A round that begins again shares other secrets: never two polynomials of one."""
    group = secure_group(3)
    first = group.roster()
    assert group.roster() == first
    group.share(first)
    second = group.roster()
    assert all(a.mask_key != b.mask_key for a, b in zip(first.adverts, second.adverts, strict=True))


def test_shares_that_were_changed_or_swapped_are_refused(secure_group: Callable[..., Any]) -> None:
    group = secure_group(3)
    roster = group.roster()
    request = masking_request(roster, group.share(roster), "c00")
    one, two, three = request.shares
    changed = two.model_copy(update={"ciphertext": ("0" if two.ciphertext[0] != "0" else "1") + two.ciphertext[1:]})
    for_other = next(s for s in group.sealed["c01"].shares if s.receiver == "c02")
    for shares, reason in (
        ((one, changed, three), "shares of c01 are not shares that it has encrypted for this client"),
        ((one, for_other, three), "are for c02"),
        ((one, two), "expected those of c00, c01, c02"),
    ):
        with pytest.raises(FederationError, match=reason):
            group.mask(roster, "c00", request.model_copy(update={"shares": shares}))


@pytest.mark.parametrize("text", ["[]", '["-1", "1"]', f'["{"f" * 240}", "1"]', '["1", 1]', "[" * 400, "x"])
def test_encrypted_texts_that_are_no_shares_are_refused_in_the_name_of_their_sender(
    secure_group: Callable[..., Any], text: str
) -> None:
    """They would fail when a client passes them on, and it would be the one that is refused."""
    group = secure_group(3)
    roster = group.roster()
    one, two, three = masking_request(roster, group.share(roster), "c00").shares
    liar = group.client("c01").store.read()
    ciphertext = masking_client._cipher(liar, roster, "c00", ("c01", "c00")).encrypt(bytes(12), text.encode(), None)
    shares = (one, two.model_copy(update={"ciphertext": ciphertext.hex()}), three)
    request = masking_request(roster, group.sealed, "c00").model_copy(update={"shares": shares})
    with pytest.raises(FederationError, match="the shares of c01 are not shares"):
        group.mask(roster, "c00", request)


def test_shares_of_another_secret_are_found_out(secure_group: Callable[..., Any]) -> None:
    group = secure_group(3)
    roster, request = prepared(group)
    unmasking = UnmaskingRequest(sum=request(), consents=group.consents(request()))
    revealed = group.reveal(unmasking, roster.names)
    shares = revealed["c00"].self_masks | {"c02": "abc"}
    revealed["c00"] = revealed["c00"].model_copy(update={"self_masks": shares})
    with pytest.raises(FederationError, match="shares of c02 give"):
        list(remaining_masks(roster, request(), revealed))


def test_the_transcript_is_independent_of_single_updates(secure_group: Callable[..., Any]) -> None:
    """Two worlds with other updates of the same sum: the bytes of every masked update are uniform in both.

    Chi-squared over 256 values has mean 255 and standard deviation 22.6; the bound is six of these above.
    """
    draw, size = np.random.default_rng(1), 60_000
    worlds = []
    base = {n: draw.integers(-3000, 3000, size) for n in ("c00", "c01", "c02")}
    step = 3 / (2**15 - 1 - 3)  # of a delta with a third of the mean
    for name, shift in (("one", {}), ("other", {"c00": 5000, "c01": -5000})):
        group = secure_group(3, folder=name)
        group.frames = dict.fromkeys(group.names, 100)
        group.deltas = {n: {"w": ((base[n] + shift.get(n, 0)) * step).astype(np.float32)} for n in group.names}
        worlds.append((group, group.run()))
    (one, one_sum), (other, other_sum) = worlds
    assert np.array_equal(one_sum["w"], other_sum["w"])
    assert not np.array_equal(one.open_sum(["c00"])["w"], other.open_sum(["c00"])["w"])
    for group in (one, other):
        for name in group.names:
            with open_weights(group.masked(name)) as file:
                masked = file["w"]
            assert chi_squared(masked) < 391
            assert chi_squared(group.open_sum([name])["w"]) > 10_000


def test_the_late_update_of_a_client_that_dropped_out_stays_hidden(secure_group: Callable[..., Any]) -> None:
    """The shares give its key of masks with others; its own mask, of which nobody gives a share, is left."""
    group = secure_group(3)
    group.frames = dict.fromkeys(group.names, 100)
    draw = np.random.default_rng(2)
    group.deltas = {n: {"w": draw.normal(0, 0.01, 60_000).astype(np.float32)} for n in group.names}
    roster, request = prepared(group)
    asked = request(without="c02")
    unmasking = UnmaskingRequest(sum=asked, consents=group.consents(asked))
    revealed = group.reveal(unmasking, asked.survivors)
    assert all(list(found.mask_keys) == ["c02"] and "c02" not in found.self_masks for found in revealed.values())
    pairwise = list(remaining_masks(roster, asked, revealed))[len(asked.survivors) :]
    assert len(pairwise) == len(asked.survivors)
    hidden = without_masks(group.masked("c02"), [mask.inverse for mask in pairwise])
    assert chi_squared(hidden) < 391
    own = Mask(bytes.fromhex(group.client("c02").store.read().self_mask), is_added=False)
    opened = without_masks(group.masked("c02"), [own, *(mask.inverse for mask in pairwise)])
    assert np.array_equal(opened, group.open_sum(["c02"])["w"])  # nothing but its own mask was left


def without_masks(masked: Path, masks: list[Mask]) -> Any:
    """Return the words of tensor w of a masked update after masks were applied to all its tensors in their order."""
    streams = MaskStreams(masks)
    with open_weights(masked) as file:
        found = {name: file[name] for name in file}
    for words in found.values():
        streams.apply(words)
    return found["w"]


def chi_squared(words: Any) -> float:
    counts = np.bincount(words.view(np.uint8), minlength=256)
    return float(((counts - counts.mean()) ** 2 / counts.mean()).sum())


def test_updates_are_masked_and_summed_a_block_at_a_time(secure_group: Callable[..., Any]) -> None:
    """A delta of 24 MB, clipped: no part of the protocol holds more than a few blocks of it."""
    group = secure_group(3, clip_norm=5.0)
    group.frames = dict.fromkeys(group.names, 100)
    delta = {"w": np.random.default_rng(3).normal(0, 0.01, 6_000_000).astype(np.float32)}
    group.deltas = dict.fromkeys(group.names, delta)
    roster = group.roster()
    group.share(roster)
    source, masks = group.folder / "deltas.safetensors", [Mask(bytes([n]) * 32, True) for n in range(10)]
    save_weights(source, delta)
    tracemalloc.start()
    save_masked(group.masked("c00"), source, METRICS, (roster, "c00"), masks, "blake3")
    files = [group.masked("c00")] * 3
    save_sum(group.folder / "sum.safetensors", files, masks, "blake3")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < delta["w"].nbytes / 2


def test_a_delta_is_clipped_with_its_rounding(secure_group: Callable[..., Any], tmp_path: Path) -> None:
    """What is sent has at most the norm of the client's share of clip_norm, and comes close to it."""
    group = secure_group(3, clip_norm=0.5)
    roster, step = group.roster(), 1.0 / (2**15 - 1 - 3)
    for name in group.names:
        save_weights(tmp_path / "deltas", group.deltas[name])
        save_masked(tmp_path / "words", tmp_path / "deltas", METRICS, (roster, name), [], "blake3")
        with open_weights(tmp_path / "words") as file:
            norm = np.sqrt(sum(np.square(file[n].view(np.int16) * step).sum() for n in group.deltas[name]))
        assert 0.99 < norm / (0.5 * roster.mean_shares[name]) <= 1


def test_a_grid_that_is_too_coarse_for_the_clipping_is_refused(secure_group: Callable[..., Any]) -> None:
    group = secure_group(3, clip_norm=1e-4)
    with pytest.raises(UpdateError, match=r"expected federation\.secure_bits 32"):
        prepared(group)
    prepared(secure_group(3, folder="fine", clip_norm=1e-4, bits=32))


def test_a_delta_that_is_not_finite_is_not_sent(secure_group: Callable[..., Any]) -> None:
    group = secure_group(3)
    group.deltas["c01"]["a"][2, 1] = np.nan
    with pytest.raises(UpdateError, match="tensor a holds numbers that are not finite"):
        prepared(group)


def test_masks_are_the_key_stream_of_rfc_8439() -> None:
    """Appendix A.1, test vector 1: key, counter and nonce are zero; blocks of any length continue the stream."""
    words = np.zeros(32, np.uint16)
    streams = MaskStreams([Mask(bytes(32), is_added=True)])
    for start, stop in ((0, 3), (3, 10), (10, 32)):
        streams.apply(words[start:stop])
    assert words.tobytes().hex().startswith("76b8e0ada0f13d90405d6ae55386bd28bdd219b8a08ded1aa836efcc8b770dc7")
    MaskStreams([Mask(bytes(32), is_added=False)]).apply(words)
    assert not words.any()


def test_fewer_shares_than_the_threshold_fit_every_secret() -> None:
    """Modulo 31, threshold 2: one share is that of as many polynomials for one secret as for another."""
    for point in (1, 2, 30):
        found = [
            [secret for slope in range(31) if evaluate_polynomial([secret, slope], [point], 31)[point] == 17]
            for secret in range(31)
        ]
        assert {len(one) for one in found} == {1}


def test_any_shares_give_the_secret() -> None:
    secret = 2**256 - 189
    shares = split_secret(secret, range(1, 8), 5)
    assert join_shares({point: shares[point] for point in (7, 2, 3, 6, 1)}) == secret
    assert join_shares({point: shares[point] for point in (7, 2, 3, 6)}) != secret


def test_an_update_of_an_earlier_round_is_not_masked_again(tmp_path: Path) -> None:
    rounds = MaskedRounds(tmp_path / "rounds.json")
    rounds.add("s", 2)
    rounds.add("s", 2)
    rounds.add("t", 1)
    assert (rounds.last("s"), rounds.last("t"), rounds.last("u")) == (2, 1, 0)
    with pytest.raises(FederationError, match="masked its update of round 2 already"):
        rounds.add("s", 1)

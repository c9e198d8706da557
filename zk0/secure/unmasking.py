"""The server's part of a sum: which masks are left in it, their keys from shares of clients, and the sum without them.

In the sum of the clients' masked updates the masks of two summed clients cancel. What is left is the own mask of each,
and the masks that they share with clients that dropped out.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from zk0.audit.signing_key import is_signed
from zk0.errors import FederationError, UpdateError
from zk0.records import DigestAlgorithm, SummedUpdates
from zk0.secure.key_agreement import KEY_BYTES, check_public_key, public_key
from zk0.secure.mask_streams import Mask, MaskStreams
from zk0.secure.masking_client import pairwise_mask
from zk0.secure.messages import (
    Consent,
    KeyAdvert,
    MaskingRequest,
    RevealedShares,
    Roster,
    SealedShares,
    SecureRound,
    SumRequest,
)
from zk0.secure.shamir import join_shares
from zk0.weights.files import open_weights
from zk0.weights.fixed_point import METRICS_TENSOR, summed_blocks
from zk0.weights.writer import open_weights_writer


def check_advert(common: SecureRound, found: KeyAdvert) -> None:
    """Check that a client has signed its keys for a round, and that others can use them.

    Raises:
        FederationError: it has not, or they cannot: every other client would refuse a roster with such keys.
    """
    if not is_signed(found.identity, found.signed_bytes(common), found.signature):
        raise FederationError("its keys are not signed by its node for this round")
    for key in (found.channel_key, found.mask_key):
        check_public_key(bytes.fromhex(key))


def check_consent(roster: Roster, request: SumRequest, found: Consent) -> None:
    """Check that a client has signed a sum.

    Raises:
        FederationError: it has not.
    """
    if not is_signed(roster.advert(found.client).identity, request.signed_bytes(), found.signature):
        raise FederationError("its consent to the sum is not signed by its node")


def check_sealed(roster: Roster, found: SealedShares) -> None:
    """Check that a client has sent one share to each of those who hold some.

    Raises:
        FederationError: it has not.
    """
    receivers = sorted(share.receiver for share in found.shares if share.sender == found.client)
    if found.roster != roster.digest or receivers != list(roster.holders(found.client)):
        raise FederationError(f"shares for {', '.join(receivers)}, expected {', '.join(roster.holders(found.client))}")
    if len(receivers) != len(found.shares):
        raise FederationError("shares in the name of another client")


def masking_request(roster: Roster, sealed: Mapping[str, SealedShares], client: str) -> MaskingRequest:
    """Return the request to mask its update for one client, with the shares for it.

    Args:
        roster: of the sum.
        sealed: what each client has sent to the others, by its name.
        client: the receiver.
    """
    senders = [name for name in roster.holders(client) if name in sealed]
    shares = tuple(share for name in senders for share in sealed[name].shares if share.receiver == client)
    return MaskingRequest(roster=roster.digest, sharers=tuple(sorted(sealed)), shares=shares)


def check_revealed(roster: Roster, request: SumRequest, found: RevealedShares) -> None:
    """Check that a client has answered about its own neighbors only, and about each with the share that is asked for.

    Raises:
        FederationError: it has not.
    """
    holds = {name for name in request.sharers if found.client in roster.holders(name)}
    expected = holds & set(request.survivors), holds - set(request.survivors)
    if found.roster != roster.digest or (set(found.self_masks), set(found.mask_keys)) != expected:
        raise FederationError("its shares are not those of the clients that it is asked for")


def has_enough(roster: Roster, request: SumRequest, answered: Sequence[str]) -> bool:
    """Whether the shares of these clients give every key that is needed."""
    return len(answered) >= roster.least_survivors and all(
        len(set(roster.holders(name)) & set(answered)) >= roster.share_threshold(name)
        for name in _needed(roster, request)
    )


def remaining_masks(roster: Roster, request: SumRequest, revealed: Mapping[str, RevealedShares]) -> Iterator[Mask]:
    """Yield the masks that remove what is left in the sum.

    Args:
        roster: of the sum.
        request: whose updates are summed.
        revealed: checked shares, by client.

    Raises:
        FederationError: too few shares, or shares that give another key than the client has announced.
    """
    survivors = set(request.survivors)
    for name in _needed(roster, request):
        is_summed = name in survivors
        shares = {
            roster.point(holder): int((one.self_masks if is_summed else one.mask_keys)[name], 16)
            for holder, one in sorted(revealed.items())
            if holder in roster.holders(name)
        }
        key = _joined(roster, name, shares)
        advert = roster.advert(name)
        announced = advert.self_mask_digest if is_summed else advert.mask_key
        if (hashlib.sha256(key).digest() if is_summed else public_key(key)).hex() != announced:
            raise FederationError(f"the shares of {name} give another key than it has announced: a client has lied")
        if is_summed:
            yield Mask(key, is_added=False)
        else:
            peers = (peer for peer in roster.neighbors[name] if peer in survivors)
            yield from (pairwise_mask(roster, (name, key), peer) for peer in peers)


def save_sum(
    target: Path,
    files: Sequence[Path],
    masks: Sequence[Mask],
    algorithm: DigestAlgorithm,
) -> tuple[str, NDArray[np.uint64]]:
    """Write the sum of masked files without the masks, a block at a time.

    Returns the digest of the file and the sum of the words of the clients' metrics, which are not in it: they hold
    durations, and the same updates have the same digest.

    Args:
        target: the file with the sum.
        files: of the summed clients.
        masks: as `remaining_masks` yields them.
        algorithm: of the digest.

    Raises:
        CheckpointError: a file that cannot be read.
        UpdateError: files of different tensors.
    """
    streams = MaskStreams(masks)
    with ExitStack() as stack:
        opened = [stack.enter_context(open_weights(path)) for path in files]
        specs = opened[0].specs
        if other := next((file for file in opened if dict(file.specs) != dict(specs)), None):
            raise UpdateError(f"{other.path}: its tensors are not those of {opened[0].path}")
        weights = {name: spec for name, spec in specs.items() if name != METRICS_TENSOR}
        metrics: NDArray[np.uint64] = np.empty(0, np.uint64)
        with open_weights_writer(target, weights, algorithm=algorithm) as writer:
            for name, words in summed_blocks(opened):
                streams.apply(words)
                if name == METRICS_TENSOR:
                    metrics = words
                else:
                    writer.write(words)
    return writer.digest, metrics


def _needed(roster: Roster, request: SumRequest) -> list[str]:
    """Return the clients of which a key is needed: those in the sum, and those that have shared masks with them."""
    survivors = set(request.survivors)
    return [name for name in request.sharers if name in survivors or survivors & set(roster.neighbors[name])]


def _joined(roster: Roster, name: str, shares: Mapping[int, int]) -> bytes:
    """Return the key of a client from its shares.

    Raises:
        FederationError: there are too few, or they do not give a key.
    """
    if len(shares) < (least := roster.share_threshold(name)):
        raise FederationError(f"{len(shares)} clients have sent shares of {name}, expected {least}; nothing is opened")
    secret = join_shares(dict(list(shares.items())[:least]))
    if secret >= 1 << (8 * KEY_BYTES):
        raise FederationError(f"the shares of {name} give no key: a client has lied")
    return secret.to_bytes(KEY_BYTES, "big")


def summed_updates(roster: Roster, request: SumRequest) -> SummedUpdates:
    """Return the record of a sum."""
    grid, shares = roster.grid, roster.mean_shares
    return SummedUpdates(
        clients=request.survivors,
        dropped=tuple(name for name in request.sharers if name not in request.survivors),
        roster=roster.digest,
        threshold=roster.least_survivors,
        bits=roster.common.rules.bits,
        step=grid.step,
        share=sum(shares[name] for name in request.survivors),
    )

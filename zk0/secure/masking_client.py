"""A client's part in a sum: it announces keys, shares secrets, masks its update, agrees to a sum, and opens masks.

A client masks its update for one roster only, and agrees to one sum of a round only. It then gives shares of the own
mask of each client in that sum, and of the key of each client that dropped out: never both of one client, and nothing
before two thirds of all clients have agreed to the very same sum. So a server that shows different sums to different
clients gets no update (Bonawitz et al., CCS 2017, section 6.2).
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from pydantic import TypeAdapter

from zk0.audit.signing_key import SigningKey, is_signed
from zk0.errors import FederationError
from zk0.secure.agreed_sums import AgreedSums
from zk0.secure.key_agreement import agreed_key
from zk0.secure.known_peers import KnownPeers
from zk0.secure.mask_streams import Mask
from zk0.secure.masking_state import MaskingState, MaskingStore
from zk0.secure.messages import (
    Consent,
    KeyAdvert,
    MaskedUpdate,
    MaskingRequest,
    RevealedShares,
    Roster,
    SealedShare,
    SealedShares,
    SecureRound,
    ShareHex,
    SumRequest,
    UnmaskingRequest,
    missing_names,
)
from zk0.secure.shamir import split_secret

_SHARE = TypeAdapter(ShareHex)
_NONCE = bytes(12)
"""Each key encrypts one message only."""
MaskUpdate = Callable[[list[Mask], Roster], str]
"""Writes the masked update, and returns its digest."""


@dataclass(frozen=True)
class MaskingClient:
    """One client in one round.

    Attributes:
        name: of the client.
        store: its state.
        key: of its node, which signs.
        peers: the keys of other clients' nodes.
        sums: those that it has agreed to, in all sessions.
    """

    name: str
    store: MaskingStore
    key: SigningKey
    peers: KnownPeers
    sums: AgreedSums

    def advertise(self, common: SecureRound, frames: int) -> KeyAdvert:
        """Return the client's keys for a round; new ones if it has shared their secrets before, but masked nothing.

        Raises:
            FederationError: the client's update of this round is masked for clients with other rules.
        """
        state = self.store.read()
        if state is not None and state.masked is not None:
            if state.common != common or state.advert.frames != frames:
                raise FederationError(f"round {common.round}: the update is masked already, for a round of other rules")
            return state.advert
        if state is None or state.roster is not None or state.common != common or state.advert.frames != frames:
            state = self.store.write(MaskingState.create(common, self.name, frames, self.key))
        return state.advert

    def share(self, roster: Roster) -> SealedShares:
        """Return shares of the client's secrets, encrypted for its neighbors and itself.

        Raises:
            FederationError: the roster is not one in which this client takes part.
        """
        state = self._state(roster.common)
        if state.roster is not None:
            if state.roster != roster or state.sealed is None:
                raise FederationError("its secrets are shared with the clients of another roster; it shares them once")
            return state.sealed
        roster.check()
        if state.advert not in roster.adverts:
            raise FederationError("a roster without this client's keys of this round")
        self.peers.check(roster.adverts)
        sealed = SealedShares(client=self.name, roster=roster.digest, shares=tuple(_seal(state, roster, self.name)))
        self.store.write(state.model_copy(update={"roster": roster, "sealed": sealed}))
        return sealed

    def mask(self, common: SecureRound, request: MaskingRequest, mask_update: MaskUpdate) -> MaskedUpdate:
        """Mask the client's update, once in a round, with the neighbors whose shares have come.

        Args:
            common: the round.
            request: who has sent shares, and the shares for this client.
            mask_update: writes the masked update.

        Raises:
            FederationError: too few shares, or shares that are not those of the neighbors.
        """
        state, roster = self._in_roster(common, request.roster)
        if state.masking is not None and state.masking != request:
            raise FederationError("its update is masked with other clients already; it is masked once")
        self._check_shares(state, roster, request)
        state = self.store.write(state.model_copy(update={"masking": request}))
        digest = mask_update(list(_masks(state, roster, request, self.name)), roster)
        if state.masked is not None and state.masked.digest != digest:
            raise FederationError("its update is not the one that it has masked before")
        masked = MaskedUpdate(client=self.name, roster=roster.digest, digest=digest)
        self.store.write(state.model_copy(update={"masked": masked}))
        return masked

    def consent(self, common: SecureRound, request: SumRequest) -> Consent:
        """Agree to the sum of some clients' updates: to one in a round, and to none of other clients' same updates.

        Raises:
            FederationError: the client has agreed to another one, or it is a sum of too few.
        """
        state, roster = self._in_roster(common, request.roster)
        if state.masking is None or state.masked is None or request.sharers != state.masking.sharers:
            raise FederationError("a sum of clients with whom this client has not masked its update")
        if state.sum is not None and state.sum != request:
            raise FederationError(f"it has agreed to the sum of {', '.join(state.sum.survivors)}; it agrees to one")
        _check_survivors(roster, request, self.name)
        self.sums.agree(common, request.survivors)
        self.store.write(state.model_copy(update={"sum": request}))
        return Consent(client=self.name, signature=self.key.sign(request.signed_bytes()))

    def reveal(self, common: SecureRound, request: UnmaskingRequest) -> RevealedShares:
        """Return the shares that remove the masks from the one sum that the client has agreed to.

        Raises:
            FederationError: it has not agreed to this sum, or fewer than two thirds of all clients have.
        """
        state, roster = self._in_roster(common, request.sum.roster)
        if state.sum is None or state.masking is None or state.sum != request.sum:
            raise FederationError("it has not agreed to the sum whose masks it is asked for")
        agreed = {consent.client for consent in request.consents if _is_consent(roster, request.sum, consent)}
        if len(agreed) < roster.least_survivors:
            raise FederationError(f"{len(agreed)} clients have signed the sum, expected {roster.least_survivors}")
        own, keys = {}, {}
        for sealed in state.masking.shares:
            self_mask, mask_key = _open(state, roster, sealed)
            if sealed.sender in request.sum.survivors:
                own[sealed.sender] = f"{self_mask:x}"
            else:
                keys[sealed.sender] = f"{mask_key:x}"
        return RevealedShares(client=self.name, roster=roster.digest, self_masks=own, mask_keys=keys)

    def _state(self, common: SecureRound) -> MaskingState:
        state = self.store.read()
        if state is None or state.common != common:
            raise FederationError(f"round {common.round}: this client has announced no keys for such a round")
        return state

    def _in_roster(self, common: SecureRound, digest: str) -> tuple[MaskingState, Roster]:
        state = self._state(common)
        if state.roster is None or state.roster.digest != digest:
            raise FederationError(f"roster {digest[:12]} is not the one with which this client has shared its secrets")
        return state, state.roster

    def _check_shares(self, state: MaskingState, roster: Roster, request: MaskingRequest) -> None:
        """Check that all shares are there, can be decrypted, and are enough to open each mask."""
        holders = [name for name in roster.holders(self.name) if name in request.sharers]
        senders = [sealed.sender for sealed in request.shares]
        if list(request.sharers) != sorted(set(request.sharers)) or (foreign := set(request.sharers) - {*roster.names}):
            raise FederationError("sharers that are not those of the roster in order, each once")
        if sorted(senders) != holders or foreign:
            raise FederationError(f"shares of {', '.join(senders)}; expected those of {', '.join(holders)}")
        least = max(roster.share_threshold(self.name) - len(holders), roster.least_survivors - len(request.sharers))
        if least > 0:
            raise FederationError(
                f"{least} clients too few share secrets; {missing_names(roster.names, request.sharers)} do not"
            )
        for sealed in request.shares:
            _open(state, roster, sealed)


def _check_survivors(roster: Roster, request: SumRequest, name: str) -> None:
    survivors = request.survivors
    if list(survivors) != sorted(set(survivors) & set(request.sharers)) or name not in survivors:
        raise FederationError("a sum that is not of this client and others that have shared secrets, each once")
    if len(survivors) < roster.least_survivors:
        raise FederationError(f"a sum of {len(survivors)} clients, expected {roster.least_survivors} or more")


def _is_consent(roster: Roster, request: SumRequest, consent: Consent) -> bool:
    if consent.client not in request.survivors:
        return False
    return is_signed(roster.advert(consent.client).identity, request.signed_bytes(), consent.signature)


def _masks(state: MaskingState, roster: Roster, request: MaskingRequest, name: str) -> Iterator[Mask]:
    yield Mask(bytes.fromhex(state.self_mask), is_added=True)
    for peer in roster.neighbors[name]:
        if peer in request.sharers:
            yield pairwise_mask(roster, (name, bytes.fromhex(state.mask_secret)), peer)


def pairwise_mask(roster: Roster, owner: tuple[str, bytes], peer: str) -> Mask:
    """Return the mask that a client shares with a peer: the one with the smaller name adds it, the other subtracts it.

    Args:
        roster: of the sum.
        owner: the client, and its private key of masks.
        peer: the other one.
    """
    name, secret = owner
    purpose = json.dumps(["mask", roster.digest, *sorted((name, peer))]).encode()
    key = agreed_key(secret, bytes.fromhex(roster.advert(peer).mask_key), purpose)
    return Mask(key, is_added=name < peer)


def _seal(state: MaskingState, roster: Roster, name: str) -> Iterator[SealedShare]:
    """Yield shares of the client's two secrets for each of those who hold some."""
    holders, threshold = roster.holders(name), roster.share_threshold(name)
    points = [roster.point(holder) for holder in holders]
    own = split_secret(int(state.self_mask, 16), points, threshold)
    keys = split_secret(int(state.mask_secret, 16), points, threshold)
    for holder, point in zip(holders, points, strict=True):
        text = json.dumps([f"{own[point]:0132x}", f"{keys[point]:0132x}"]).encode()  # always of one length
        cipher = _cipher(state, roster, holder, (name, holder))
        sealed = cipher.encrypt(_NONCE, text, None)
        yield SealedShare(sender=name, receiver=holder, ciphertext=sealed.hex())


def _open(state: MaskingState, roster: Roster, sealed: SealedShare) -> tuple[int, int]:
    """Return the shares of the sender's own mask and of its key.

    Raises:
        FederationError: they are not shares that the sender has encrypted for this client.
    """
    name = state.advert.client
    try:
        if sealed.receiver != name:
            raise FederationError(f"the shares of {sealed.sender} are for {sealed.receiver}, not for {name}")
        cipher = _cipher(state, roster, sealed.sender, (sealed.sender, name))
        texts = json.loads(cipher.decrypt(_NONCE, bytes.fromhex(sealed.ciphertext), None))
        own, key = (int(_SHARE.validate_python(text), 16) for text in texts)
        return own, key
    except (InvalidTag, ValueError, TypeError) as e:
        raise FederationError(
            f"the shares of {sealed.sender} are not shares that it has encrypted for this client"
        ) from e


def _cipher(state: MaskingState, roster: Roster, peer: str, direction: tuple[str, str]) -> ChaCha20Poly1305:
    purpose = json.dumps(["share", roster.digest, *direction]).encode()
    public = bytes.fromhex(roster.advert(peer).channel_key)
    return ChaCha20Poly1305(agreed_key(bytes.fromhex(state.channel_secret), public, purpose))

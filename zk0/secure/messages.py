"""What clients tell each other through the server in secure aggregation. Every text has a form and a largest size."""

import hashlib
import json
from collections.abc import Sequence
from functools import cached_property
from typing import Annotated, Self

from pydantic import Field

from zk0.aggregation.frame_caps import capped_frames
from zk0.audit.signing_key import is_signed
from zk0.errors import FederationError
from zk0.records import MAX_INDEX, MAX_TEXT, Frames, Name, Record
from zk0.secure.neighbors import neighbor_graph
from zk0.settings.plans import RoundPlan, SecureRules
from zk0.weights.fixed_point import FixedPointGrid

MAX_CLIENTS = 10_000
"""In one sum."""
LEAST_CLIENTS = 3
"""In one sum: of two clients, each could subtract its own update from it."""
Hex32 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
"""32 bytes."""
SignatureHex = Annotated[str, Field(pattern=r"^[0-9a-f]{128}$")]
"""An Ed25519 signature."""
ShareHex = Annotated[str, Field(pattern=r"^[0-9a-f]{1,132}$")]
"""A share of a secret: a number below 2^521."""
_KEYS, _SUM = b"zk0 secure aggregation: keys\n", b"zk0 secure aggregation: sum\n"
"""What signed texts begin with, so that no signature counts for another kind of text."""


class SecureRound(Record):
    """What all clients of a sum have in common."""

    session: str = Field(max_length=MAX_TEXT)
    round: int = Field(ge=1, le=MAX_INDEX)
    global_digest: str = Field(max_length=128)
    """Of the weights that they have trained from."""
    seed: int = Field(ge=0)
    """Of the session; from the same weights with the same seed a client trains the same update."""
    rules: SecureRules

    @classmethod
    def of(cls, plan: RoundPlan) -> Self:
        """Return what the plan of one client has in common with those of the others.

        Raises:
            FederationError: the plan asks for no secure aggregation.
        """
        if plan.secure is None:
            raise FederationError(f"round {plan.round}: its plan asks for updates, not for secure aggregation")
        return cls(
            session=plan.terms.session,
            round=plan.round,
            global_digest=plan.global_digest,
            seed=plan.terms.seed,
            rules=plan.secure,
        )


class KeyAdvert(Record):
    """The public keys of one client for one round, signed with the key of its node."""

    client: Name
    frames: Frames
    """Training frames, which decide its share of the mean."""
    identity: Hex32
    """Public Ed25519 key of the node, by which other clients know it again."""
    channel_key: Hex32
    """X25519 key, with which shares for this client are encrypted."""
    mask_key: Hex32
    """X25519 key, from which masks with other clients are made."""
    self_mask_digest: Hex32
    """SHA-256 of the key of the client's own mask."""
    signature: SignatureHex

    def signed_bytes(self, common: SecureRound) -> bytes:
        """Return what the signature is over: the round and everything else."""
        return signed_keys(common, self.model_dump(exclude={"signature"}))


def signed_keys(common: SecureRound, values: dict[str, object]) -> bytes:
    """Return the bytes that a client signs to announce its keys: all fields of an advert but the signature."""
    return _KEYS + json.dumps([common.model_dump(mode="json"), values], sort_keys=True).encode()


class Roster(Record):
    """The clients of a sum with their keys, in the order of their names."""

    common: SecureRound
    adverts: tuple[KeyAdvert, ...] = Field(min_length=LEAST_CLIENTS, max_length=MAX_CLIENTS)

    def check(self) -> None:
        """Check names and signatures.

        Raises:
            FederationError: a client is listed twice or out of order, or has not signed its keys for this round.
        """
        names = self.names
        if list(names) != sorted(set(names)):
            raise FederationError("a roster whose clients are not in order, each once")
        for advert in self.adverts:
            if not is_signed(advert.identity, advert.signed_bytes(self.common), advert.signature):
                raise FederationError(f"the keys of {advert.client} are not signed by its node for this round")

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Of the clients."""
        return tuple(advert.client for advert in self.adverts)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the roster."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()

    @cached_property
    def neighbors(self) -> dict[str, tuple[str, ...]]:
        """With whom each client shares masks."""
        return neighbor_graph(self.names, self.common.rules.neighbors, self.digest.encode())

    @property
    def grid(self) -> FixedPointGrid:
        """On which the clients' deltas are summed."""
        rules = self.common.rules
        return FixedPointGrid(rules.bits, rules.limit, len(self.adverts))

    @property
    def least_survivors(self) -> int:
        """Clients whose updates a sum must hold, and whose answers the server needs."""
        return threshold_of(len(self.adverts))

    def advert(self, client: str) -> KeyAdvert:
        """Return the keys of a client of this roster."""
        return self.adverts[self.names.index(client)]

    def point(self, client: str) -> int:
        """Return where the polynomials of all secrets are evaluated for a client."""
        return self.names.index(client) + 1

    def holders(self, client: str) -> tuple[str, ...]:
        """Return who holds shares of a client's secrets: its neighbors and itself."""
        return tuple(sorted((*self.neighbors[client], client)))

    def share_threshold(self, client: str) -> int:
        """Return how many shares give a secret of a client."""
        return threshold_of(len(self.holders(client)))

    @cached_property
    def mean_shares(self) -> dict[str, float]:
        """The share of each client in the mean of all."""
        weights = mean_weights([advert.frames for advert in self.adverts], self.common.rules)
        return {name: weight / sum(weights) for name, weight in zip(self.names, weights, strict=True)}


def mean_weights(frames: Sequence[int], rules: SecureRules) -> list[int]:
    """Return the weights of clients with these training frames in the mean."""
    return [1] * len(frames) if rules.equal_weights else capped_frames(frames, rules.max_share_factor)


def threshold_of(count: int) -> int:
    """Return two thirds of a number of clients, rounded up: a third may drop out.

    >>> [threshold_of(count) for count in (3, 4, 5, 6)]
    [2, 3, 4, 4]
    """
    return -(-2 * count // 3)


class SealedShare(Record):
    """Shares of one client's secrets for another client, encrypted for it."""

    sender: Name
    receiver: Name
    ciphertext: str = Field(pattern=r"^[0-9a-f]{32,1024}$")


class SealedShares(Record):
    """All that one client sends to its neighbors and to itself."""

    client: Name
    roster: Hex32
    shares: tuple[SealedShare, ...] = Field(max_length=MAX_CLIENTS)


class MaskingRequest(Record):
    """The shares for one client, from all neighbors that have sent some; it masks its update with those neighbors."""

    roster: Hex32
    sharers: tuple[Name, ...] = Field(max_length=MAX_CLIENTS)
    """All clients of the roster that have sent shares, in the order of their names."""
    shares: tuple[SealedShare, ...] = Field(max_length=MAX_CLIENTS)


class MaskedUpdate(Record):
    """The record of a file with a client's masked words."""

    client: Name
    roster: Hex32
    digest: str = Field(max_length=128)
    """Of the words."""


class SumRequest(Record):
    """Whose updates are summed, as the server says."""

    roster: Hex32
    sharers: tuple[Name, ...] = Field(max_length=MAX_CLIENTS)
    """Whose shares were given out."""
    survivors: tuple[Name, ...] = Field(max_length=MAX_CLIENTS)
    """Whose masked updates have arrived, in the order of their names."""

    def signed_bytes(self) -> bytes:
        """Return what a client signs when it agrees."""
        return _SUM + json.dumps(self.model_dump(mode="json"), sort_keys=True).encode()


class Consent(Record):
    """A client's signature under the one sum of a round to whose unmasking it contributes."""

    client: Name
    signature: SignatureHex


class UnmaskingRequest(Record):
    """The sum, and the signatures of the clients that have agreed to it."""

    sum: SumRequest
    consents: tuple[Consent, ...] = Field(max_length=MAX_CLIENTS)


class RevealedShares(Record):
    """Shares that one client gives to the server: of each other client's own mask, or of its key, never of both."""

    client: Name
    roster: Hex32
    self_masks: dict[Name, ShareHex] = Field(max_length=MAX_CLIENTS)
    """Of clients whose updates are summed: shares of the key of their own mask."""
    mask_keys: dict[Name, ShareHex] = Field(max_length=MAX_CLIENTS)
    """Of clients that dropped out: shares of the private key from which their masks are made."""


def missing_names(expected: Sequence[str], found: Sequence[str]) -> str:
    """Return the names of those that are expected and not found, for a message.

    >>> missing_names(["a", "b", "c"], ["b"])
    'a, c'
    """
    return ", ".join(name for name in expected if name not in found)

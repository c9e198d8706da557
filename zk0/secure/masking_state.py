"""What a client keeps of its part in one round's sum, so that a request that comes again gets the same answer."""

import hashlib
from pathlib import Path
from secrets import token_bytes

from pydantic import ValidationError

from zk0.audit.signing_key import SigningKey
from zk0.errors import FederationError
from zk0.records import Record
from zk0.secure.key_agreement import KEY_BYTES, public_key
from zk0.secure.messages import (
    Hex32,
    KeyAdvert,
    MaskedUpdate,
    MaskingRequest,
    Roster,
    SealedShares,
    SecureRound,
    SumRequest,
    signed_keys,
)
from zk0.storage.atomic import atomic_write_bytes


class MaskingState(Record):
    """The client's secrets of a round, and how far it has come."""

    common: SecureRound
    advert: KeyAdvert
    channel_secret: Hex32
    """X25519 private key, for the encryption of shares."""
    mask_secret: Hex32
    """X25519 private key, for masks with other clients."""
    self_mask: Hex32
    """Key of the client's own mask."""
    roster: Roster | None = None
    """None: the client has announced its keys and nothing else."""
    sealed: SealedShares | None = None
    masking: MaskingRequest | None = None
    """None: no masked update was made."""
    masked: MaskedUpdate | None = None
    sum: SumRequest | None = None
    """The one sum that the client has agreed to."""

    @classmethod
    def create(cls, common: SecureRound, client: str, frames: int, key: SigningKey) -> "MaskingState":
        """Draw the secrets of a round, and sign their public keys."""
        channel, mask, own = (token_bytes(KEY_BYTES) for _ in range(3))
        key.create()
        values: dict[str, object] = {
            "client": client,
            "frames": frames,
            "identity": key.public_hex(),
            "channel_key": public_key(channel).hex(),
            "mask_key": public_key(mask).hex(),
            "self_mask_digest": hashlib.sha256(own).hexdigest(),
        }
        signature = key.sign(signed_keys(common, values))
        return cls(
            common=common,
            advert=KeyAdvert.model_validate(values | {"signature": signature}),
            channel_secret=channel.hex(),
            mask_secret=mask.hex(),
            self_mask=own.hex(),
        )


class MaskingStore:
    """The file of a client's state in one round, readable by its owner only."""

    def __init__(self, file: Path) -> None:
        self._file = file

    @property
    def folder(self) -> Path:
        """Of the file and of the masked update."""
        return self._file.parent

    def read(self) -> MaskingState | None:
        """Return the state; None where the client has not begun.

        Raises:
            FederationError: the file is damaged.
        """
        if not self._file.is_file():
            return None
        try:
            return MaskingState.model_validate_json(self._file.read_bytes())
        except ValidationError as e:
            raise FederationError(
                f"{self._file}: not the state of a sum ({e.error_count()} faults); the client cannot take part in it"
            ) from e

    def write(self, state: MaskingState) -> MaskingState:
        """Replace the state, and return it."""
        atomic_write_bytes(self._file, state.model_dump_json().encode(), mode=0o600)
        return state

"""What a server has of a round's sum on disk, so that a retry or a resumed session goes on where it stopped."""

from pathlib import Path

from pydantic import ValidationError

from zk0.errors import CheckpointError, FederationError, UpdateError
from zk0.federation.protocol.spool import link_file
from zk0.records import SUM_NAME, Record, Update
from zk0.secure.messages import MaskedUpdate, Roster, SealedShares, SumRequest
from zk0.storage.atomic import atomic_write_text
from zk0.weights.digests import algorithm_of, check_weights
from zk0.weights.files import check_header_size, open_weights
from zk0.weights.fixed_point import masked_specs
from zk0.weights.tensor_spec import TensorSpec, file_bytes


class SharedSecrets(Record):
    """The clients of a sum, and what each of them has sent for the others. With it, masking begins."""

    roster: Roster
    sealed: dict[str, SealedShares]


class SecureSpool:
    """Files of one round's sum in the folder of its updates.

    `sum/roster.json` has the shares, `CLIENT.safetensors` and `CLIENT.json` a masked update, `sum/survivors.json` the
    clients whose updates are summed, `secure-sum.safetensors` and `secure-sum.json` the sum.

    Args:
        folder: of the round's updates.
        weights: file of the global weights that the clients train from.
    """

    def __init__(self, folder: Path, weights: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (own := folder / "sum").mkdir(exist_ok=True)
        self._roster, self._survivors = own / "roster.json", own / "survivors.json"
        self._folder, self._global = folder, weights

    @property
    def sum_file(self) -> Path:
        """The file with the sum."""
        return self._folder / f"{SUM_NAME}.safetensors"

    def read_secrets(self) -> SharedSecrets | None:
        """Return roster and shares; None before masking began."""
        return _read(self._roster, SharedSecrets)

    def write_secrets(self, found: SharedSecrets) -> None:
        """Store roster and shares, before the first client is asked to mask its update."""
        atomic_write_text(self._roster, found.model_dump_json())

    def read_survivors(self) -> SumRequest | None:
        """Return whose updates are summed; None before that was decided."""
        return _read(self._survivors, SumRequest)

    def write_survivors(self, found: SumRequest) -> None:
        """Store whose updates are summed, before the first client is asked to agree."""
        atomic_write_text(self._survivors, found.model_dump_json())

    def read_sum(self) -> Update | None:
        """Return the record of the sum; None where there is none, or its file is damaged."""
        found = _read(self._folder / f"{SUM_NAME}.json", Update)
        try:
            if found is not None:
                check_weights(self.sum_file, found.digest)
        except CheckpointError:
            return None
        return found

    def write_sum(self, found: Update) -> Update:
        """Store the record of the sum, and return it."""
        atomic_write_text(self._folder / f"{SUM_NAME}.json", found.model_dump_json())
        return found

    def masked_file(self, client: str) -> Path:
        """The file of a client's masked update."""
        return self._folder / f"{client}.safetensors"

    def has_masked(self, client: str, roster: Roster) -> bool:
        """Whether the masked update of a client is here, undamaged."""
        found = _read(self._folder / f"{client}.json", MaskedUpdate)
        if found is None or found.roster != roster.digest:
            return False
        try:
            self._check(client, found, roster)
        except (CheckpointError, UpdateError):
            return False
        return True

    def receive(self, client: str, found: MaskedUpdate, source: Path, roster: Roster) -> None:
        """Store a masked update.

        Args:
            client: its sender.
            found: its record.
            source: its file as it arrived.
            roster: of the sum.

        Raises:
            FederationError: it is for another roster, or in the name of another client.
            UpdateError: its tensors are not words of updates of the global weights, or its file is too large.
            CheckpointError: its digest is not the one that it names.
        """
        if found.client != client or found.roster != roster.digest:
            raise FederationError(f"its masked update names client {found.client} and roster {found.roster[:12]}")
        specs = self._masked_specs(roster.common.rules.bits)
        if (size := source.stat().st_size) != (expected := file_bytes(specs)):
            raise UpdateError(f"its masked update has {size} bytes, expected {expected}")
        check_header_size(source, specs)
        link_file(source, self.masked_file(client))
        with open_weights(self.masked_file(client)) as masked:
            if dict(masked.specs) != specs:
                raise UpdateError("the tensors of its masked update are not those of the global weights")
        self._check(client, found, roster)
        atomic_write_text(self._folder / f"{client}.json", found.model_dump_json(), durable=False)

    def masked_bytes(self, bits: int) -> int:
        """Return the size of the file of a masked update with words of so many bits."""
        return file_bytes(self._masked_specs(bits))

    def _masked_specs(self, bits: int) -> dict[str, TensorSpec]:
        with open_weights(self._global) as file:
            return masked_specs(file.specs, bits)

    def _check(self, client: str, found: MaskedUpdate, roster: Roster) -> None:
        if algorithm_of(found.digest) != (expected := algorithm_of(roster.common.global_digest)):
            raise UpdateError(f"its digest is of {algorithm_of(found.digest)}, expected {expected}")
        check_weights(self.masked_file(client), found.digest)


def _read[R: Record](file: Path, kind: type[R]) -> R | None:
    try:
        return kind.model_validate_json(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, UnicodeDecodeError, ValidationError):
        return None

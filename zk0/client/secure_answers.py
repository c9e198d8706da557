"""A client's answers in secure aggregation: its trained update and its node's key in `zk0.secure.masking_client`."""

from collections.abc import Iterator
from pathlib import Path
from shutil import rmtree
from typing import TYPE_CHECKING

from zk0.audit.signing_key import SigningKey
from zk0.client.round_state import session_state_folder
from zk0.errors import FederationError
from zk0.records import Update
from zk0.secure.agreed_sums import AgreedSums
from zk0.secure.known_peers import PEERS_FILE, KnownPeers
from zk0.secure.mask_streams import Mask
from zk0.secure.masked_file import save_masked
from zk0.secure.masked_rounds import MaskedRounds
from zk0.secure.masking_client import MaskingClient
from zk0.secure.masking_state import MaskingStore
from zk0.secure.messages import (
    Consent,
    KeyAdvert,
    MaskedUpdate,
    MaskingRequest,
    RevealedShares,
    Roster,
    SealedShares,
    SecureRound,
    SumRequest,
    UnmaskingRequest,
)
from zk0.settings.plans import RoundPlan
from zk0.weights.digests import algorithm_of

if TYPE_CHECKING:
    from zk0.client.client import Client

_ROUNDS = "masked_rounds.json"
"""In the client's scratch folder: the last masked round of each session."""
_SUMS = "agreed_sums.json"
"""In the client's scratch folder: the sums that it has agreed to."""


class SecureAnswers:
    """The answers of one client to the messages of one round.

    Args:
        client: with its trained updates.
        plan: of the round.
        key: of the client's node.
    """

    def __init__(self, client: "Client", plan: RoundPlan, key: SigningKey) -> None:
        self._client, self._plan, self._common = client, plan, SecureRound.of(plan)
        self._rounds = MaskedRounds(client.scratch / _ROUNDS)
        store = MaskingStore(self._folder(plan.round) / "state.json")
        peers, sums = KnownPeers(client.scratch / PEERS_FILE), AgreedSums(client.scratch / _SUMS)
        self._masking = MaskingClient(client.name, store, key, peers, sums)

    def advertise(self, update: Update) -> KeyAdvert:
        """Return the client's keys, after its training; what it kept of rounds before is removed.

        Raises:
            FederationError: the client has masked an update of this round, or of a later one, and its state is gone.
        """
        last, number = self._rounds.last(self._plan.terms.session), self._plan.round
        if last > number or (last == number and not self._folder(number).is_dir()):
            raise FederationError(f"round {number}: this client has masked its update of round {last} already")
        for folder in self._earlier_rounds():
            rmtree(folder, ignore_errors=True)
        return self._masking.advertise(self._common, update.examples)

    def share(self, roster: Roster) -> SealedShares:
        """Return shares of the client's secrets for its neighbors."""
        if roster.common != self._common:
            raise FederationError("a roster of another round than the plan's")
        return self._masking.share(roster)

    def mask(self, request: MaskingRequest) -> tuple[MaskedUpdate, Path]:
        """Return the record and the file of the client's masked update.

        Raises:
            FederationError: the client has not trained on this plan, or may not mask its update for this request.
        """
        update = self._client.outbox.stored(self._plan)
        if update is None:
            raise FederationError(f"round {self._plan.round}: this client has no update of this plan; it trains first")
        target = self._folder(self._plan.round) / "masked.safetensors"
        metrics, deltas = update.metrics, Path(update.path)

        def write(masks: list[Mask], roster: Roster) -> str:
            place, algorithm = (roster, self._client.name), algorithm_of(self._plan.global_digest)
            return save_masked(target, deltas, metrics, place, masks, algorithm)

        masked = self._masking.mask(self._common, request, write)
        self._rounds.add(self._plan.terms.session, self._plan.round)
        return masked, target

    def consent(self, request: SumRequest) -> Consent:
        """Agree to a sum."""
        return self._masking.consent(self._common, request)

    def reveal(self, request: UnmaskingRequest) -> RevealedShares:
        """Return the shares that remove the masks from a sum."""
        return self._masking.reveal(self._common, request)

    def _folder(self, number: int) -> Path:
        return session_state_folder(self._client.scratch, self._plan.terms.session) / "secure" / f"round-{number:03d}"

    def _earlier_rounds(self) -> Iterator[Path]:
        for folder in self._folder(self._plan.round).parent.glob("round-*"):
            if int(folder.name.removeprefix("round-")) < self._plan.round:
                yield folder

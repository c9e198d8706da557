from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from zk0.audit.signing_key import SigningKey
from zk0.records import ClientMetrics
from zk0.secure.agreed_sums import AgreedSums
from zk0.secure.known_peers import KnownPeers
from zk0.secure.masked_file import save_masked
from zk0.secure.masking_client import MaskingClient
from zk0.secure.masking_state import MaskingStore
from zk0.secure.messages import (
    Consent,
    MaskedUpdate,
    MaskingRequest,
    RevealedShares,
    Roster,
    SealedShares,
    SecureRound,
    SumRequest,
    UnmaskingRequest,
)
from zk0.secure.unmasking import check_revealed, check_sealed, masking_request, remaining_masks, save_sum
from zk0.settings.plans import SecureRules
from zk0.weights.files import open_weights
from zk0.weights.fixed_point import METRICS_TENSOR
from zk0.weights.writer import save_weights

METRICS = ClientMetrics(
    policy_loss=1.5, fedprox_loss=0.25, grad_norm=2.0, update_norm=0.5, local_steps=4, lr_first=1e-3, lr_last=1e-4,
    seconds=3.0,
)  # fmt: skip


@dataclass
class SecureGroup:
    """Clients with updates of their own, and a server that asks them for what it likes."""

    folder: Path
    deltas: dict[str, dict[str, NDArray[Any]]]
    frames: dict[str, int]
    rules: SecureRules
    round: int = 1
    session: str = "s"
    seed: int = 42
    sealed: dict[str, SealedShares] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        return sorted(self.deltas)

    @property
    def common(self) -> SecureRound:
        return SecureRound(session=self.session, round=self.round, global_digest="g", seed=self.seed, rules=self.rules)

    def client(self, name: str) -> MaskingClient:
        home = self.folder / name
        store = MaskingStore(home / self.session / f"round-{self.round}" / "state.json")
        key = SigningKey(home / "node.key", home / "node.pub")
        return MaskingClient(name, store, key, KnownPeers(home / "peers.json"), AgreedSums(home / "sums.json"))

    def roster(self, names: Sequence[str] | None = None) -> Roster:
        adverts = [self.client(n).advertise(self.common, self.frames[n]) for n in names or self.names]
        return Roster(common=self.common, adverts=tuple(adverts))

    def share(self, roster: Roster, names: Sequence[str] | None = None) -> dict[str, SealedShares]:
        self.sealed = {n: self.client(n).share(roster) for n in names or roster.names}
        for found in self.sealed.values():
            check_sealed(roster, found)
        return self.sealed

    def masked(self, name: str) -> Path:
        return self.folder / name / f"masked-{self.round}.safetensors"

    def mask(self, roster: Roster, name: str, request: MaskingRequest | None = None) -> MaskedUpdate:
        source = self.folder / name / "deltas.safetensors"
        save_weights(source, self.deltas[name])

        def write(masks: Any, found: Roster) -> str:
            return save_masked(self.masked(name), source, METRICS, (found, name), masks, "blake3")

        return self.client(name).mask(self.common, request or masking_request(roster, self.sealed, name), write)

    def consents(self, request: SumRequest, names: Sequence[str] | None = None) -> tuple[Consent, ...]:
        return tuple(self.client(n).consent(self.common, request) for n in names or request.survivors)

    def reveal(self, request: UnmaskingRequest, names: Sequence[str]) -> dict[str, RevealedShares]:
        return {n: self.client(n).reveal(self.common, request) for n in names}

    def sum(self, roster: Roster, request: SumRequest, revealed: dict[str, RevealedShares]) -> dict[str, NDArray[Any]]:
        for found in revealed.values():
            check_revealed(roster, request, found)
        target = self.folder / "sum.safetensors"
        files = [self.masked(name) for name in request.survivors]
        _, metrics = save_sum(target, files, list(remaining_masks(roster, request, revealed)), "blake3")
        with open_weights(target) as file:
            return {name: file[name] for name in file} | {METRICS_TENSOR: metrics}

    def run(self, gone: Sequence[Sequence[str]] = ((), (), (), (), ())) -> dict[str, NDArray[Any]]:
        """Run a round in which some clients stop before each of the five messages; return the sum."""
        left = [[n for n in self.names if not any(n in those for those in gone[: at + 1])] for at in range(5)]
        roster = self.roster(left[0])
        self.share(roster, left[1])
        for name in left[2]:
            self.mask(roster, name)
        request = SumRequest(roster=roster.digest, sharers=tuple(left[1]), survivors=tuple(left[2]))
        unmasking = UnmaskingRequest(sum=request, consents=self.consents(request, left[3]))
        return self.sum(roster, request, self.reveal(unmasking, left[4]))

    def open_sum(self, clients: Sequence[str], members: Sequence[str] | None = None) -> dict[str, NDArray[Any]]:
        """Return the open fixed-point sum, in numpy's integers."""
        members = sorted(members or self.names)
        frames = sum(self.frames[n] for n in members)
        step = self.rules.limit / (2 ** (self.rules.bits - 1) - 1 - len(members))
        found = {}
        for name in self.deltas[members[0]]:
            scaled = [
                np.rint(np.clip(self.deltas[c][name].astype(np.float64), -1, 1) * (self.frames[c] / frames / step))
                for c in clients
            ]
            total = np.sum(scaled, axis=0).astype(np.int64)
            found[name] = (total % 2**self.rules.bits).astype(f"uint{self.rules.bits}")
        return found


@pytest.fixture
def secure_group(tmp_path: Path) -> Callable[..., SecureGroup]:
    """Return a function that makes a group of clients with random deltas."""

    def make(count: int, seed: int = 0, folder: str = "group", **rules: Any) -> SecureGroup:
        draw = np.random.default_rng(seed)
        names = [f"c{i:02d}" for i in range(count)]
        deltas = {
            n: {"b": draw.normal(0, 0.3, (7,)).astype(np.float32), "a": draw.normal(0, 0.3, (5, 3)).astype(np.float32)}
            for n in names
        }
        frames = {n: int(draw.integers(50, 150)) for n in names}
        values = {"bits": 16, "neighbors": 10, "limit": 1.0, "max_share_factor": 0} | rules
        return SecureGroup(tmp_path / folder, deltas, frames, SecureRules.model_validate(values))

    return make

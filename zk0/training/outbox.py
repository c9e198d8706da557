"""What a client has ready to be sent: finished updates on its disk, and what rounding them has lost."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from shutil import rmtree

from zk0.bf16 import open_bf16
from zk0.deltas import save_deltas
from zk0.errors import CheckpointError
from zk0.folder import write_whole
from zk0.packing import pack
from zk0.records import ClientMetrics, Update
from zk0.session import Plan, RoundPlan
from zk0.weights import Weights, check_weights, open_weights, save_weights


@dataclass(frozen=True)
class Outbox:
    """Updates that were trained once and are answered as often as they are asked for.

    `updates/` in the client's scratch folder holds them, one file and its record for each plan; `lost/SESSION/` what
    int8 has lost of the steps up to a round (`zk0.deltas`).
    """

    scratch: Path
    dataset: str

    def kept(self, plan: RoundPlan) -> Update | None:
        """The finished update of this very plan, if it is still whole."""
        record = self._file(plan).with_suffix(".json")
        if not record.is_file():
            return None
        update = Update.model_validate_json(record.read_text(encoding="utf-8"))
        sent = self._sent(plan)
        try:
            check_weights(self._file(plan), update.digest)
            if sent.stat().st_size != update.bytes:
                return None
        except (CheckpointError, FileNotFoundError):
            return None
        return update.model_copy(update={"path": str(sent)})  # the session's folder may have moved

    def keep(self, plan: RoundPlan, weights: Weights, start: Path, frames: int, metrics: ClientMetrics) -> Update:
        """Put trained weights into a file as the plan wants them sent; `start` is the file they were trained from.

        Raises:
            UpdateError: the weights cannot be sent so.
        """
        file, sent = self._file(plan), self._sent(plan)
        digest, size = self._save(plan, weights, start, file)
        if plan.wire.packed:
            size = pack(file, sent)
        update = Update(
            client=plan.client,
            round=plan.round,
            global_digest=plan.global_digest,
            path=str(sent),
            digest=digest,
            bytes=size,
            examples=frames,
            dataset=self.dataset,
            metrics=metrics,
            adapters=plan.training.adapters(),
            wire=plan.wire,
        )
        write_whole(file.with_suffix(".json"), update.model_dump_json())
        return update

    def forget_before(self, round_number: int) -> None:
        """Remove finished updates of earlier rounds: the server has gone on, so nobody asks for them again."""
        for file in (self.scratch / "updates").glob("*round-*"):  # also what a killed process left half-written
            if int(file.name.split("-")[1]) < round_number:
                file.unlink(missing_ok=True)

    def _save(self, plan: RoundPlan, weights: Weights, start: Path, file: Path) -> tuple[str, int]:
        if plan.wire.up == "fp32":
            return save_weights(file, weights)
        with open_start(plan, start) as anchor:
            if plan.wire.up == "bf16":
                return save_deltas(file, weights, anchor, "bf16")
            earlier = max((r for r in self._rounds_lost(plan) if r < plan.round), default=None)
            lost = self._lost(plan, earlier) if earlier is not None else None, self._lost(plan, plan.round)
            found = save_deltas(file, weights, anchor, "int8", lost)
        for number in [r for r in self._rounds_lost(plan) if r < plan.round and r != earlier]:
            self._lost(plan, number).unlink(missing_ok=True)
        return found

    def _rounds_lost(self, plan: RoundPlan) -> Iterator[int]:
        for file in _folder_of_lost(self.scratch, plan.terms.session).glob("round-*"):
            yield int(file.stem.removeprefix("round-"))

    def _lost(self, plan: RoundPlan, number: int) -> Path:
        return _folder_of_lost(self.scratch, plan.terms.session) / f"round-{number:03d}.safetensors"

    def _file(self, plan: RoundPlan) -> Path:
        return self.scratch / "updates" / f"round-{plan.round:03d}-{plan.digest()[:16]}.safetensors"

    def _sent(self, plan: RoundPlan) -> Path:
        return self._file(plan).with_suffix(".packed") if plan.wire.packed else self._file(plan)


@contextmanager
def open_start(plan: Plan, path: Path) -> Iterator[Weights]:
    """The float32 weights that a plan begins with, from the file that came with it; read a tensor at a time.

    Raises:
        CheckpointError: they are not those that the plan names.
    """
    if plan.wire.down_digest is not None:
        with open_bf16(path, plan.wire.down_digest) as weights:
            yield weights
        return
    check_weights(path, plan.global_digest)
    with open_weights(path) as file:
        yield file


def forget_lost(scratch: Path, session: str) -> None:
    """Remove what rounding has lost in a session that is over."""
    rmtree(_folder_of_lost(scratch, session), ignore_errors=True)


def _folder_of_lost(scratch: Path, session: str) -> Path:
    """Named by a digest: a session's name comes from the server and is no path."""
    return scratch / "lost" / hashlib.sha256(session.encode()).hexdigest()[:16]

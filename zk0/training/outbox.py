"""What a client has ready to be sent: finished updates on its disk, and what it remembers from round to round."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from shutil import rmtree

from zk0.bf16 import open_bf16
from zk0.control import CONTROL
from zk0.deltas import save_deltas
from zk0.errors import CheckpointError
from zk0.folder import write_whole
from zk0.int8 import open_int8
from zk0.packing import pack
from zk0.records import ClientMetrics, Update
from zk0.session import Plan, RoundPlan
from zk0.weights import Weights, check_weights, load_weights, open_checked, save_weights


@dataclass(frozen=True)
class Finished:
    """What a round's training has made."""

    weights: Weights
    frames: int
    metrics: ClientMetrics
    control: Weights | None = None
    """The client's new control variate (SCAFFOLD)."""


@dataclass(frozen=True)
class Outbox:
    """Updates that were trained once and are answered as often as they are asked for.

    `updates/` in the client's scratch folder holds them, one file and its record for each plan: they are checked when
    they are asked for, and what a power cut has spoilt is trained again. The next update is written over one that
    nobody needs any more. `memory/` holds what a client carries from one round of a session to its next: what int8 has
    lost (`zk0.deltas`), or its control variate.
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

    def keep(self, plan: RoundPlan, finished: Finished, start: Path) -> Update:
        """Put trained weights into a file as the plan wants them sent; `start` is the file they were trained from.

        Raises:
            UpdateError: the weights cannot be sent so.
        """
        file, sent = self._file(plan), self._sent(plan)
        digest, size = self._save(plan, finished, start, file)
        if plan.wire.packed:
            size = pack(file, sent)
        update = Update(
            client=plan.client,
            round=plan.round,
            global_digest=plan.global_digest,
            path=str(sent),
            digest=digest,
            bytes=size,
            examples=finished.frames,
            dataset=self.dataset,
            metrics=finished.metrics,
            adapters=plan.training.adapters(),
            wire=plan.wire,
            control=plan.control,
        )
        write_whole(file.with_suffix(".json"), update.model_dump_json())
        return update

    def own_control(self, plan: RoundPlan) -> Weights:
        """The client's control variate after its last round before this one; empty where there was none."""
        earlier = _Memory(self.scratch, plan, "control").earlier
        return load_weights(earlier) if earlier else {}

    def forget_before(self, round_number: int) -> None:
        """Remove finished updates of earlier rounds: the server has gone on, so nobody asks for them again."""
        for file in (self.scratch / "updates").glob("*round-*"):  # also what a killed process left half-written
            if int(file.name.split("-")[1]) >= round_number:
                continue
            if file.suffix == ".safetensors" and not self._spare.exists():
                file.replace(self._spare)
            else:
                file.unlink(missing_ok=True)

    def _save(self, plan: RoundPlan, finished: Finished, start: Path, file: Path) -> tuple[str, int]:
        if finished.control is not None:
            return self._save_with_control(plan, finished.weights, finished.control, file)
        if plan.wire.up == "fp32":
            return save_weights(file, finished.weights, lasting=False, spare=self._spare)
        with open_start(plan, start) as anchor:
            if plan.wire.up == "bf16":
                return save_deltas(file, finished.weights, anchor, "bf16")
            lost = _Memory(self.scratch, plan, "lost")
            found = save_deltas(file, finished.weights, anchor, "int8", (lost.earlier, lost.now))
        lost.forget_older()
        return found

    def _save_with_control(self, plan: RoundPlan, weights: Weights, control: Weights, file: Path) -> tuple[str, int]:
        before = self.own_control(plan)
        change = {CONTROL + name: new - before[name] if before else new for name, new in control.items()}
        memory = _Memory(self.scratch, plan, "control")
        save_weights(memory.now, control)
        memory.forget_older()
        return save_weights(file, {**weights, **change}, lasting=False, spare=self._spare)

    @property
    def _spare(self) -> Path:
        return self.scratch / "updates" / "spare"

    def _file(self, plan: RoundPlan) -> Path:
        return self.scratch / "updates" / f"round-{plan.round:03d}-{plan.digest()[:16]}.safetensors"

    def _sent(self, plan: RoundPlan) -> Path:
        return self._file(plan).with_suffix(".packed") if plan.wire.packed else self._file(plan)


class _Memory:
    """Files of one kind that a session's rounds leave to each other; a round that is done again reads the same one."""

    def __init__(self, scratch: Path, plan: RoundPlan, kind: str) -> None:
        self._folder, self._kind, self._round = _folder_of(scratch, plan.terms.session), kind, plan.round

    @property
    def now(self) -> Path:
        """Where this round leaves its own."""
        return self._file(self._round)

    @property
    def earlier(self) -> Path | None:
        """That of the last round before this one."""
        number = max(self._earlier_rounds(), default=None)
        return None if number is None else self._file(number)

    def forget_older(self) -> None:
        """Remove those that neither this round nor the next one reads."""
        for number in sorted(self._earlier_rounds())[:-1]:
            self._file(number).unlink(missing_ok=True)

    def _earlier_rounds(self) -> Iterator[int]:
        for file in self._folder.glob(f"{self._kind}-*.safetensors"):
            if (number := int(file.stem.removeprefix(f"{self._kind}-"))) < self._round:
                yield number

    def _file(self, number: int) -> Path:
        return self._folder / f"{self._kind}-{number:03d}.safetensors"


@contextmanager
def open_start(plan: Plan, path: Path) -> Iterator[Weights]:
    """The float32 weights that a plan begins with, from the file that came with it; read a tensor at a time.

    Control variates that came with them are among them (`zk0.control`).

    Raises:
        CheckpointError: they are not those that the plan names.
    """
    opened = {"bf16": open_bf16, "int8": open_int8}.get(plan.wire.down, open_checked)
    with opened(path, plan.wire.down_digest or plan.global_digest) as weights:
        yield weights


def forget_session(scratch: Path, session: str) -> None:
    """Remove what a client has carried through the rounds of a session that is over."""
    rmtree(_folder_of(scratch, session), ignore_errors=True)


def _folder_of(scratch: Path, session: str) -> Path:
    """Named by a digest: a session's name comes from the server and is no path."""
    return scratch / "memory" / hashlib.sha256(session.encode()).hexdigest()[:16]

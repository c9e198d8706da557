"""The answers of one round on disk: what was taken once is not asked for again, what was refused is not forgotten."""

import os
import shutil
from collections.abc import Collection
from pathlib import Path

from flwr.app import RecordDict
from pydantic import ValidationError

from zk0.aggregation.verify import verify_update
from zk0.disk import room_for
from zk0.errors import CheckpointError, UpdateError
from zk0.federation.sent import WEIGHTS_PATH
from zk0.folder import write_whole
from zk0.packing import unpack
from zk0.records import Record, Refusal, Update
from zk0.session import RoundPlan
from zk0.weights import open_weights
from zk0.wire import file_specs


class Spool:
    """Where the answers to the plans of one round lie.

    `CLIENT.safetensors` and `CLIENT.json` are a good update, `CLIENT.refused` the weights of a bad one, kept for a
    look, and `refusals.jsonl` every refusal of every attempt.

    Args:
        folder: of the round; made if it is not there.
        weights: the file of the global weights that the plans start from.
    """

    def __init__(self, folder: Path, weights: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._global = weights
        self.step_norms: dict[str, float] = {}
        """How far each update that was found good lies from the global weights (L2), by client."""

    def kept(self, plan: RoundPlan) -> Update | None:
        """The good update that this very plan brought in an earlier attempt, if it is still good."""
        try:
            kept = _Kept.model_validate_json(self._record(plan.client).read_text(encoding="utf-8"))
        except (FileNotFoundError, UnicodeDecodeError, ValidationError):
            return None
        if kept.plan != plan.digest():
            return None
        update = kept.update.model_copy(update={"path": str(self._weights(plan.client))})
        return update if self._fault_of(update, plan, ()) is None else None

    def take(self, answer: RecordDict, plan: RoundPlan, seen: Collection[str]) -> Update | Refusal:
        """A good answer as an update that lies here; a bad one as a refusal. `seen`: clients already taken."""
        target = self._weights(plan.client)
        try:
            update = Update.model_validate_json(str(answer["answer"]["update"]))
            with room_for(target):
                self._bring(update, Path(str(answer["answer"][WEIGHTS_PATH])), target)
        except (KeyError, ValidationError) as e:
            return self.refuse(plan.client, f"an answer that is no update ({first_line(e)})")
        except FileNotFoundError as e:
            return self.refuse(plan.client, f"the weights it names are not there: {e.filename}")
        except (CheckpointError, UpdateError) as e:
            return self.refuse(plan.client, str(e))
        update = update.model_copy(update={"path": str(target)})
        reason = self._fault_of(update, plan, seen)
        if reason is not None:
            return self.put_aside(plan.client, reason)
        kept = _Kept(plan=plan.digest(), update=update)
        write_whole(self._record(plan.client), kept.model_dump_json())
        return update

    def put_aside(self, client: str, reason: str) -> Refusal:
        """A refusal of weights that lie here; they are kept for a look, and asked for again if the round is."""
        self._record(client).unlink(missing_ok=True)
        self._weights(client).replace(self._weights(client).with_suffix(".refused"))
        return self.refuse(client, reason)

    def refuse(self, client: str, reason: str) -> Refusal:
        """A refusal, written down at once: the next attempt or a killed session does not lose it."""
        refusal = Refusal(client=client, reason=reason)
        with room_for(self._refusals), self._refusals.open("a", encoding="utf-8") as file:
            file.write(refusal.model_dump_json() + "\n")
        return refusal

    def refusals(self) -> tuple[Refusal, ...]:
        """Every refusal of this round in the order of client names, those of earlier attempts first."""
        if not self._refusals.is_file():
            return ()
        whole = self._refusals.read_text(encoding="utf-8").split("\n")[:-1]  # a killed writer may leave half a line
        return tuple(sorted((Refusal.model_validate_json(line) for line in whole), key=lambda r: r.client))

    def _bring(self, update: Update, source: Path, target: Path) -> None:
        if not update.wire.packed:
            _link(source, target)
            return
        with open_weights(self._global) as file:
            unpack(source, target, file_specs(update, file.specs))

    @property
    def _refusals(self) -> Path:
        return self._folder / "refusals.jsonl"

    def _weights(self, client: str) -> Path:
        return self._folder / f"{client}.safetensors"

    def _record(self, client: str) -> Path:
        return self._folder / f"{client}.json"

    def _fault_of(self, update: Update, plan: RoundPlan, seen: Collection[str]) -> str | None:
        if update.client != plan.client:
            return f"answers as {update.client}"
        if update.adapters != plan.training.adapters():
            return f"trained adapters {update.adapters}, expected {plan.training.adapters()}"
        if update.control != plan.control:
            return f"control variates: {update.control}, expected {plan.control}"
        if update.wire != plan.wire:
            return f"was sent as {update.wire}, expected {plan.wire}"
        found = verify_update(
            update, round=plan.round, global_digest=plan.global_digest, global_path=self._global, seen=seen
        )
        if isinstance(found, Refusal):
            return found.reason
        self.step_norms[update.client] = found
        return None


class _Kept(Record):
    plan: str
    update: Update


def first_line(error: Exception) -> str:
    """The first line of an error's text, or its type where it has none."""
    return next(iter(str(error).splitlines()), type(error).__name__)


def _link(source: Path, target: Path) -> None:
    """One copy on disk where the file system allows it."""
    half = target.with_name(f".{target.name}.{os.getpid()}")
    half.unlink(missing_ok=True)
    try:
        _copy(source, half)
        half.replace(target)
    finally:
        half.unlink(missing_ok=True)  # where both are one file already, replacing does nothing


def _copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)

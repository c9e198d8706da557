"""The updates and refusals of one round on disk, so that a retry or a resumed session does not repeat finished work."""

import os
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import NamedTuple, Self

from flwr.app import RecordDict
from pydantic import ValidationError

from zk0.aggregation.verify import verify_update
from zk0.errors import CheckpointError, FederationError, UpdateError
from zk0.federation.flower.flower_message import WEIGHTS_PATH
from zk0.federation.protocol.answers import MAX_REASON, UPDATE, parse_answer
from zk0.records import Member, Record, Refusal, Update, clean_text
from zk0.settings.plans import RoundPlan
from zk0.storage.atomic import atomic_path, atomic_write_text
from zk0.storage.record_lines import RecordLines
from zk0.weights.compression import decompress_weights
from zk0.weights.files import check_header_size, open_weights
from zk0.weights.update_files import update_file_bytes, update_file_specs


class JoinedWith(NamedTuple):
    """What a client's updates may not say otherwise than its joining answer."""

    frames: int
    """Training frames."""
    dataset: str

    @classmethod
    def of(cls, member: Member) -> Self:
        """Return that of a joining answer."""
        return cls(member.train_frames, member.dataset)


class Spool:
    """Folder of one round's answers.

    `CLIENT.safetensors` and `CLIENT.json` are an accepted update, `CLIENT.refused` the weights of a refused one, kept
    as evidence, and `refusals.jsonl` the refusals of all attempts.

    Args:
        folder: of the round; created if it does not exist.
        weights: file of the global weights that the plans start from.
        joined: of each client's joining answer. Its update must claim the same number of frames, and is recorded under
            the same dataset; a client that is missing here may claim any.
    """

    def __init__(self, folder: Path, weights: Path, joined: Mapping[str, JoinedWith] | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._global = weights
        self._joined = joined or {}
        self.delta_norms: dict[str, float] = {}
        """L2 norm of each accepted update minus the global weights, by client."""

    def load(self, plan: RoundPlan) -> Update | None:
        """Return the update that an earlier attempt accepted for the same plan, if its file is still valid."""
        try:
            spooled = _SpooledUpdate.model_validate_json(self._record(plan.client).read_text(encoding="utf-8"))
        except (FileNotFoundError, UnicodeDecodeError, ValidationError):
            return None
        if spooled.plan != plan.digest():
            return None
        update = spooled.update.model_copy(update={"path": str(self._weights(plan.client))})
        return update if self._problem(update, plan, ()) is None else None

    def receive(self, answer: RecordDict, plan: RoundPlan, accepted: Collection[str]) -> Update | Refusal:
        """Check an answer and store it here.

        Args:
            answer: the client's, with the path of its weights.
            plan: that the client was sent.
            accepted: clients whose updates were accepted before.

        Returns:
            The update with the path of its weights in this folder, or the refusal.
        """
        target = self._weights(plan.client)
        try:
            update = parse_answer(answer, UPDATE, Update)
            source = Path(str(answer["answer"][WEIGHTS_PATH]))
            if problem := _form_problem(update, plan):
                return self.refuse(plan.client, problem)
            size = self._checked_size(update, source)
            dataset = known.dataset if (known := self._joined.get(plan.client)) else update.dataset
            update = update.model_copy(update={"path": str(target), "bytes": size, "dataset": dataset})
            self._store(update, source, target)
        except (FederationError, CheckpointError, UpdateError) as e:
            return self.refuse(plan.client, str(e))
        except KeyError:
            return self.refuse(plan.client, "its answer is not an update (it came without weights)")
        except FileNotFoundError as e:
            return self.refuse(plan.client, f"its weights file does not exist: {e.filename}")
        problem = self._problem(update, plan, accepted)
        if problem is not None:
            return self.quarantine(plan.client, problem)
        spooled = _SpooledUpdate(plan=plan.digest(), update=update)
        atomic_write_text(self._record(plan.client), spooled.model_dump_json(), durable=False)
        return update

    def quarantine(self, client: str, reason: str) -> Refusal:
        """Refuse an update that lies here: its weights stay as `CLIENT.refused`; a retry requests the update again."""
        self._record(client).unlink(missing_ok=True)
        self._weights(client).replace(self._weights(client).with_suffix(".refused"))
        return self.refuse(client, reason)

    def refuse(self, client: str, reason: str) -> Refusal:
        """Record a refusal at once, so that neither a retry nor a killed session loses it."""
        refusal = Refusal(client=client, reason=clean_text(reason, MAX_REASON))
        self._refusals.append(refusal)
        return refusal

    def refusals(self) -> tuple[Refusal, ...]:
        """Return all refusals of this round in the order of client names, those of earlier attempts first."""
        return tuple(sorted(self._refusals.read(), key=lambda r: r.client))

    def _checked_size(self, update: Update, source: Path) -> int:
        """Return the bytes of the file that arrived, which is not stored where they exceed those of its tensors."""
        size = source.stat().st_size
        with open_weights(self._global) as file:
            expected = update_file_specs(update, file.specs)
        if size > (largest := update_file_bytes(expected)):
            raise UpdateError(f"its weights file has {size} bytes, expected at most {largest}")
        if not update.wire.compressed:  # else the tensors are cut out of what was compressed, and get a header of ours
            check_header_size(source, expected)
        return size

    def _store(self, update: Update, source: Path, target: Path) -> None:
        if not update.wire.compressed:
            link_file(source, target)
            return
        with open_weights(self._global) as file:
            decompress_weights(source, target, update_file_specs(update, file.specs))

    @property
    def _refusals(self) -> RecordLines[Refusal]:
        return RecordLines(self._folder / "refusals.jsonl", Refusal)

    def _weights(self, client: str) -> Path:
        return self._folder / f"{client}.safetensors"

    def _record(self, client: str) -> Path:
        return self._folder / f"{client}.json"

    def _problem(self, update: Update, plan: RoundPlan, accepted: Collection[str]) -> str | None:
        """Return why an update is refused; None where it is valid."""
        if problem := _form_problem(update, plan):
            return problem
        if update.client != plan.client:
            return f"its answer names client {update.client}"
        if (known := self._joined.get(plan.client)) and update.examples != known.frames:
            return f"{update.examples} examples, expected the {known.frames} training frames that it joined with"
        found = verify_update(
            update,
            round=plan.round,
            global_digest=plan.global_digest,
            global_path=self._global,
            already_received=accepted,
        )
        if isinstance(found, Refusal):
            return found.reason
        self.delta_norms[update.client] = found
        return None


class _SpooledUpdate(Record):
    """An accepted update, and the digest of the plan that it answers."""

    plan: str
    update: Update


def _form_problem(update: Update, plan: RoundPlan) -> str | None:
    """Return why the form that an answer declares is not the plan's; it decides how the file is read."""
    if update.lora != plan.training.lora_shape():
        return f"its LoRA shape is {update.lora}, expected {plan.training.lora_shape()}"
    if update.has_control_variates != plan.use_control_variates:
        return f"control variates: {update.has_control_variates}, expected {plan.use_control_variates}"
    if update.summed is not None:
        return "it claims to be a sum of updates, which only a server makes"
    if update.wire != plan.wire:
        return f"its wire format is {update.wire}, expected {plan.wire}"
    return None


def link_file(source: Path, target: Path) -> None:
    """Hard-link a file, so that the disk holds it once; copy it where the file system cannot."""
    with atomic_path(target, durable=False) as temporary:
        _link_or_copy(source, temporary)


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)

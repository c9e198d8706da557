"""A client's trained updates on its disk, in the wire format that the plan asks for."""

from dataclasses import dataclass
from pathlib import Path

from zk0.client.round_state import RoundState, session_state_folder
from zk0.client.start_weights import open_start_weights
from zk0.errors import CheckpointError
from zk0.records import ClientMetrics, Update
from zk0.settings.plans import RoundPlan
from zk0.storage.atomic import atomic_write_text
from zk0.weights.compression import compress_weights
from zk0.weights.control_variates import CONTROL_PREFIX
from zk0.weights.deltas import ErrorFeedback, save_deltas, save_plain_deltas
from zk0.weights.digests import algorithm_of, check_weights, load_weights
from zk0.weights.files import Weights
from zk0.weights.writer import save_weights


@dataclass(frozen=True)
class TrainedUpdate:
    """What one round of local training produced."""

    weights: Weights
    """The trained weights, or LoRA factors, by name."""
    frames: int
    """Training frames of the client."""
    metrics: ClientMetrics
    control: Weights | None = None
    """The client's new control variate (SCAFFOLD), by name."""


@dataclass(frozen=True)
class UpdateOutbox:
    """Trained updates, so that a plan which arrives again gets the same update without training again.

    `sessions/<session>/updates/` in the client's scratch folder holds the file and the record of each plan's update. A
    file that is damaged (after a power cut, for example) does not count: the client trains again. A new file reuses the
    blocks of one that is no longer needed. The folder goes with the session's receipts.

    Args:
        scratch: the client's scratch folder.
        dataset: the client's dataset, written into each update.
    """

    scratch: Path
    dataset: str

    def stored(self, plan: RoundPlan) -> Update | None:
        """The update that was trained from this plan, if its file is undamaged; else None."""
        record = self._file(plan).with_suffix(".json")
        if not record.is_file():
            return None
        update = Update.model_validate_json(record.read_text(encoding="utf-8"))
        wire_file = self._wire_file(plan)
        try:
            check_weights(self._file(plan), update.digest)
            if wire_file.stat().st_size != update.bytes:
                return None
        except (CheckpointError, FileNotFoundError):
            return None
        return update.model_copy(update={"path": str(wire_file)})  # the session's folder may have moved

    def store(self, plan: RoundPlan, trained: TrainedUpdate, start: Path) -> Update:
        """Write a trained update in the plan's wire format.

        Args:
            plan: of the round.
            trained: the result of the training.
            start: the file that the server sent with the plan.

        Raises:
            UpdateError: the wire format cannot represent the weights.
        """
        file, wire_file = self._file(plan), self._wire_file(plan)
        digest, size = self._save(plan, trained, start, file)
        if plan.wire.compressed:
            size = compress_weights(file, wire_file)
        update = Update(
            client=plan.client,
            round=plan.round,
            global_digest=plan.global_digest,
            path=str(wire_file),
            digest=digest,
            bytes=size,
            examples=trained.frames,
            dataset=self.dataset,
            metrics=trained.metrics,
            lora=plan.training.lora_shape(),
            wire=plan.wire,
            has_control_variates=plan.use_control_variates,
        )
        atomic_write_text(file.with_suffix(".json"), update.model_dump_json())
        return update

    def client_control(self, plan: RoundPlan) -> Weights:
        """The client's control variate after its last round before this one; empty if there was none."""
        previous = RoundState(self.scratch, plan, "control").previous
        return load_weights(previous) if previous else {}

    def remove_before(self, plan: RoundPlan) -> None:
        """Remove the session's updates of rounds before the plan's, which the server does not ask for again."""
        spare = self._spare(plan)
        for file in self._folder(plan).glob("*round-*"):  # and temporary files of killed processes
            if int(file.name.split("-")[1]) >= plan.round:
                continue
            if file.suffix == ".safetensors" and not spare.exists():
                file.replace(spare)
            else:
                file.unlink(missing_ok=True)

    def _save(self, plan: RoundPlan, trained: TrainedUpdate, start: Path, file: Path) -> tuple[str, int]:
        """Digest and size in bytes of the file, before compression; the digest is computed as that of the plan."""
        algorithm = algorithm_of(plan.global_digest)
        if trained.control is not None:
            return self._save_with_control(plan, trained.weights, trained.control, file)
        if plan.secure is not None:
            with open_start_weights(plan, start) as anchor:
                return save_plain_deltas(file, trained.weights, anchor, self._spare(plan), algorithm)
        if plan.wire.upload == "fp32":
            return save_weights(file, trained.weights, False, self._spare(plan), algorithm)
        with open_start_weights(plan, start) as anchor:
            if plan.wire.upload == "bf16":
                return save_deltas(file, trained.weights, anchor, "bf16", algorithm=algorithm)
            error = RoundState(self.scratch, plan, "quantization-error")
            feedback = ErrorFeedback(error.previous, error.current)
            saved = save_deltas(file, trained.weights, anchor, "int8", feedback, algorithm)
        error.remove_older()
        return saved

    def _save_with_control(self, plan: RoundPlan, weights: Weights, control: Weights, file: Path) -> tuple[str, int]:
        """Write the weights and the change of the client's control variate."""
        before = self.client_control(plan)
        change = {CONTROL_PREFIX + name: new - before[name] if before else new for name, new in control.items()}
        state = RoundState(self.scratch, plan, "control")
        save_weights(state.current, control)
        state.remove_older()
        algorithm = algorithm_of(plan.global_digest)
        return save_weights(file, {**weights, **change}, False, self._spare(plan), algorithm)

    def _folder(self, plan: RoundPlan) -> Path:
        return session_state_folder(self.scratch, plan.terms.session) / "updates"

    def _spare(self, plan: RoundPlan) -> Path:
        """A file that is no longer needed, whose blocks the next update reuses."""
        return self._folder(plan) / "spare"

    def _file(self, plan: RoundPlan) -> Path:
        return self._folder(plan) / f"round-{plan.round:03d}-{plan.digest()[:16]}.safetensors"

    def _wire_file(self, plan: RoundPlan) -> Path:
        """The file that is sent: the update's file, or its compressed copy."""
        return self._file(plan).with_suffix(".compressed") if plan.wire.compressed else self._file(plan)

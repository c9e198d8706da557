"""A session as one run of Weights & Biases: a step a round, keys `server_*` and `client_<name>_*`.

The run is named after the session's folder, so a session that is taken up goes on in the same run. Offline it is
written to the session's folder; `wandb sync` sends it later.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from zk0.errors import PublishError
from zk0.public import public_name, public_values
from zk0.records import RoundRecord
from zk0.session import Session

KEY = "WANDB_API_KEY"
_open: dict[str, "Tracker"] = {}


class Tracker:
    """The open run of a session."""

    def __init__(self, run: Any) -> None:
        self._run = run
        self._next = int(run.step)

    def follow(self, history: Sequence[RoundRecord]) -> int:
        """Send the rounds that the run does not have yet; how many those were."""
        new = [record for record in history if record.round >= self._next]
        for record in new:
            self._run.log(round_values(record), step=record.round)
            self._next = record.next_round
        return len(new)


@contextmanager
def open_tracker(session: Session, name: str, folder: Path, key: SecretStr | None) -> Iterator[Tracker]:
    """The run of the session `name`; it is finished with the block, as failed where that fails.

    Raises:
        PublishError: W&B cannot be reached or refuses the key.
    """
    import wandb
    from wandb.errors import Error

    settings = wandb.Settings(
        silent=True,
        console="off",
        disable_git=True,
        save_code=False,
        x_disable_meta=True,
        x_disable_stats=True,
        x_disable_machine_info=True,
        api_key=key.get_secret_value() if key else None,
    )
    try:
        run = wandb.init(
            id=name,
            name=name,
            project=session.tracking.project,
            entity=session.tracking.entity,
            dir=str(folder),
            mode="offline" if session.tracking.wandb == "offline" else "online",
            resume="allow",
            config=public_values(session.model_dump(mode="json", exclude_none=True)),
            settings=settings,
        )
    except (Error, ValueError) as e:
        said = next(iter(str(e).splitlines()), type(e).__name__)
        raise PublishError(f"Weights & Biases: {said}; expected {KEY}, or tracking.wandb = 'offline'") from e
    code = 1
    try:
        _open[name] = Tracker(run)
        yield _open[name]
        code = 0
    finally:
        _open.pop(name, None)
        run.finish(exit_code=code)


def tracker(name: str) -> Tracker:
    """The open run of that session.

    Raises:
        PublishError: there is none.
    """
    if name not in _open:
        raise PublishError(f"{name}: no run of Weights & Biases is open in this process")
    return _open[name]


def round_values(record: RoundRecord) -> dict[str, float]:
    """The numbers of a round by key; what was not measured has no key."""
    values = {f"server_{key}": value for key, value in _server(record).items()}
    for client, found in _clients(record).items():
        values |= {f"client_{client}_{key}": value for key, value in found.items()}
    return {key: value for key, value in values.items() if value is not None}


def _server(record: RoundRecord) -> dict[str, Any]:
    judged, decided = record.evaluation, record.decision
    sets = {f"{public_name(s.dataset)}_policy_loss": s.policy_loss for s in judged.sets} if judged else {}
    return {
        "policy_loss": judged and judged.policy_loss,
        "policy_loss_se": judged and judged.policy_loss_se,
        "action_error_degrees": judged and judged.action_error_degrees,
        **sets,
        "lr": decided and decided.lr,
        "mu": decided and decided.mu,
        "adaptive_factor": decided and decided.lr_factor,
        "param_update_norm": record.param_update_norm,
        "num_clients": len(record.contributions),
        "num_refused": len(record.refusals),
        "seconds": record.seconds,
        **{f"{stage.replace(' ', '_')}_seconds": seconds for stage, seconds in record.stage_seconds.items()},
    }


def _clients(record: RoundRecord) -> Mapping[str, dict[str, Any]]:
    factors = record.decision.client_lr_factors if record.decision else {}
    found: dict[str, dict[str, Any]] = {}
    for update in record.updates:
        measured = update.metrics
        found[update.client] = {
            "policy_loss": measured.policy_loss,
            "fedprox_loss": measured.fedprox_loss,
            "grad_norm": measured.grad_norm,
            "update_norm": measured.update_norm,
            "local_steps": measured.local_steps,
            "lr": measured.lr_first,
            "adaptive_factor": factors.get(update.client, 1.0),
            "train_seconds": measured.seconds,
        }
    for used in record.contributions:
        found.setdefault(used.client, {}).update(weight=used.weight, cosine_to_mean=used.cosine_to_mean)
    for judged in record.client_evaluation.scores if record.client_evaluation else ():
        found.setdefault(judged.client, {}).update(
            held_out_policy_loss=judged.score.policy_loss,
            held_out_action_error_degrees=judged.score.action_error_degrees,
        )
    return found

"""Round histories with given losses, without any training."""

from zk0.records import Checkpoint, ClientMetrics, Evaluation, RoundDecision, RoundRecord, Update
from zk0.rules.round_decision import decide_round
from zk0.settings.loading import parse_session
from zk0.settings.session import Session

LR = 1e-4


def session_with(**settings: object) -> Session:
    training = {name: settings.pop(name) for name in ("lr", "proximal_mu") if name in settings}
    return parse_session(
        {
            "clients": [{"name": name, "dataset": f"local:/{name}"} for name in "abc"],
            "evaluation": {"datasets": [{"dataset": "local:/unseen"}]},
            "training": training,
            "scheduler": settings,
        },
        "test",
    )


def simulate_rounds(
    session: Session, losses: list[float | None], clients: dict[str, float] | None = None
) -> tuple[list[RoundDecision], list[RoundRecord]]:
    """Decide and record rounds 0, 1, ... with these evaluation losses (None: not evaluated) and client losses."""
    decisions: list[RoundDecision] = []
    history: list[RoundRecord] = []
    for number, loss in enumerate(losses):
        decision = decide_round(session, history) if number else None
        decisions += [decision] if decision else []
        history.append(finished_round(number, loss, decision, (clients or {}) if number else {}))
    return [*decisions, decide_round(session, history)], history


def finished_round(
    number: int, loss: float | None, decision: RoundDecision | None, clients: dict[str, float]
) -> RoundRecord:
    return RoundRecord(
        round=number,
        decision=decision,
        checkpoint=Checkpoint(round=number, path="w", digest="d", bytes=1),
        updates=tuple(update(client, number, value) for client, value in clients.items()),
        evaluation=None if loss is None else evaluation(number, loss),
        seconds=1.0,
        finished_at="2026-01-01T00:00:00+00:00",
    )


def update(client: str, number: int, loss: float) -> Update:
    rest = dict.fromkeys(("fedprox_loss", "grad_norm", "update_norm", "lr_first", "lr_last", "seconds"), 0.0)
    metrics = ClientMetrics(policy_loss=loss, local_steps=1, **rest)
    facts = {"global_digest": "d", "path": "w", "digest": "d", "bytes": 1, "examples": 1, "dataset": "d"}
    return Update(client=client, round=number, metrics=metrics, **facts)


def evaluation(number: int, loss: float) -> Evaluation:
    return Evaluation(
        round=number,
        policy_loss=loss,
        policy_loss_se=None,
        action_error_degrees=1.0,
        sets=(),
        normalization="pooled",
        seed=1,
        times=8,
        seconds=1.0,
    )

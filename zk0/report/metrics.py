"""The metric files of a session: every round, ordered; a number that was not measured is null."""

import json
from collections.abc import Sequence
from math import fsum, sqrt
from pathlib import Path

from zk0.interval import Z_95, Estimate, Metric, mean_of, measured_alike, paired_fall, weighted_mean
from zk0.records import ClientEvaluation, Evaluation, Record, Refusal, RoundRecord, Update
from zk0.report.contribution import influences
from zk0.report.write import write_bytes


class ClientRound(Record):
    """What one client measured in one round."""

    client_id: str
    dataset_name: str
    policy_loss: float
    fedprox_loss: float
    grad_norm: float
    update_norm: float
    local_steps: int
    lr_first: float
    lr_last: float
    seconds: float
    train_frames: int
    weight: float | None
    """Share in the average; None if the update was not used."""
    cosine_to_mean: float | None
    share_of_step: float | None
    """Its part of the global step; None where the step is no weighted mean."""
    shift_without: float | None
    """Leave-one-out: how far the global step would have moved, of its own length."""
    digest: str


class AggregatedClients(Record):
    """Plain means over the clients whose update was used; std has ddof 0."""

    avg_client_loss: float | None
    """Of `policy_loss`."""
    std_client_loss: float | None
    avg_client_proximal_loss: float | None
    avg_client_grad_norm: float | None
    num_clients: int
    param_update_norm: float | None


class ServerEval(Record):
    """Content of server/round_N_server_eval.json: one round, seen by the server."""

    round: int
    finished_at: str
    policy_loss: float | None
    policy_loss_se: float | None
    action_error_degrees: float | None
    evaluation: Evaluation | None
    client_evaluation: ClientEvaluation | None
    aggregated_client_metrics: AggregatedClients
    individual_client_metrics: tuple[ClientRound, ...]
    refusals: tuple[Refusal, ...]


class FederatedRound(Record):
    """One entry of federated_metrics.json."""

    round: int
    policy_loss: float | None
    action_error_degrees: float | None
    unseen_policy_loss: dict[str, float]
    """By data set that no client trains on."""
    held_out_policy_loss: dict[str, float]
    """By client, on its own held-out episodes."""
    lr: float | None
    mu: float | None
    lr_factor: float | None
    reason: str | None
    seconds: float
    aggregated_client_metrics: AggregatedClients
    individual_client_metrics: tuple[ClientRound, ...]
    refusals: tuple[Refusal, ...]


class Fall(Record):
    """How far the policy loss or the action error fell, paired over episodes."""

    since_round: int
    fall: float
    lower: float | None
    """95 % interval; None where a set has a single episode."""
    upper: float | None


class ActionError(Record):
    """One entry of action_error_history.json: the mean absolute error of predicted chunks on unseen sets."""

    round: int
    action_error_degrees: float | None
    lower: float | None
    """95 % interval over episodes, Student's t."""
    upper: float | None
    fall_since_start: Fall | None
    fall_since_last: Fall | None
    sets: dict[str, float]
    joints: dict[str, tuple[float, ...]]
    """By set, joint by joint."""
    held_out: dict[str, float]
    """By client, on its own held-out episodes."""
    normalization: str | None
    seed: int | None


class PolicyLoss(Record):
    """One entry of policy_loss_history.json: the server's loss on sets that no client trained on."""

    round: int
    policy_loss: float | None
    policy_loss_se: float | None
    lower: float | None
    """95 % interval: policy_loss -+ 1.96 SE."""
    upper: float | None
    action_error_degrees: float | None
    fall_since_start: Fall | None
    """Against the first judged round; None for that round and where the two were measured differently."""
    fall_since_last: Fall | None
    """Against the round judged before."""
    sets: dict[str, float]
    normalization: str | None
    seed: int | None
    times: int | None


def ordered(history: Sequence[RoundRecord]) -> list[RoundRecord]:
    """The history by round."""
    return sorted(history, key=lambda record: record.round)


def used_updates(record: RoundRecord) -> tuple[Update, ...]:
    """The updates that went into the average."""
    used = {c.client for c in record.contributions}
    return tuple(u for u in record.updates if u.client in used)


def mean(values: Sequence[float]) -> float | None:
    """Mean, or None of nothing.

    >>> mean([1.0, 2.0]), mean([])
    (1.5, None)
    """
    return fsum(values) / len(values) if values else None


def population_std(values: Sequence[float]) -> float | None:
    """Standard deviation with ddof 0, or None of nothing.

    >>> population_std([1.0, 3.0]), population_std([])
    (1.0, None)
    """
    centre = mean(values)
    return None if centre is None else sqrt(fsum((v - centre) ** 2 for v in values) / len(values))


def interval(value: float, se: float | None) -> tuple[float, float] | None:
    """95 % interval of a normal estimate, or None without a standard error."""
    return None if se is None else (value - Z_95 * se, value + Z_95 * se)


def _clients(record: RoundRecord) -> tuple[ClientRound, ...]:
    shares = {c.client: c for c in record.contributions}
    pulls = influences(record)
    rows = []
    for update in sorted(record.updates, key=lambda u: u.client):
        share, pull = shares.get(update.client), pulls.get(update.client)
        rows.append(
            ClientRound(
                client_id=update.client,
                dataset_name=update.dataset,
                train_frames=update.examples,
                weight=share.weight if share else None,
                cosine_to_mean=share.cosine_to_mean if share else None,
                share_of_step=pull.share if pull else None,
                shift_without=pull.shift_without if pull else None,
                digest=update.digest,
                **update.metrics.model_dump(),
            )
        )
    return tuple(rows)


def _aggregated(record: RoundRecord) -> AggregatedClients:
    used = [u.metrics for u in used_updates(record)]
    return AggregatedClients(
        avg_client_loss=mean([m.policy_loss for m in used]),
        std_client_loss=population_std([m.policy_loss for m in used]),
        avg_client_proximal_loss=mean([m.fedprox_loss for m in used]),
        avg_client_grad_norm=mean([m.grad_norm for m in used]),
        num_clients=len(used),
        param_update_norm=record.param_update_norm,
    )


def server_eval(record: RoundRecord) -> ServerEval:
    """One round as server/round_N_server_eval.json tells it."""
    judged = record.evaluation
    return ServerEval(
        round=record.round,
        finished_at=record.finished_at,
        policy_loss=judged.policy_loss if judged else None,
        policy_loss_se=judged.policy_loss_se if judged else None,
        action_error_degrees=judged.action_error_degrees if judged else None,
        evaluation=judged,
        client_evaluation=record.client_evaluation,
        aggregated_client_metrics=_aggregated(record),
        individual_client_metrics=_clients(record),
        refusals=record.refusals,
    )


def federated_metrics(history: Sequence[RoundRecord]) -> tuple[FederatedRound, ...]:
    """Every round of the session, ordered."""
    rounds = []
    for record in ordered(history):
        decision, judged, by_clients = record.decision, record.evaluation, record.client_evaluation
        rounds.append(
            FederatedRound(
                round=record.round,
                policy_loss=judged.policy_loss if judged else None,
                action_error_degrees=judged.action_error_degrees if judged else None,
                unseen_policy_loss={s.dataset: s.policy_loss for s in judged.sets} if judged else {},
                held_out_policy_loss={s.client: s.score.policy_loss for s in by_clients.scores} if by_clients else {},
                lr=decision.lr if decision else None,
                mu=decision.mu if decision else None,
                lr_factor=decision.lr_factor if decision else None,
                reason=decision.reason if decision else None,
                seconds=record.seconds,
                aggregated_client_metrics=_aggregated(record),
                individual_client_metrics=_clients(record),
                refusals=record.refusals,
            )
        )
    return tuple(rounds)


def policy_loss_history(history: Sequence[RoundRecord]) -> tuple[PolicyLoss, ...]:
    """The server's policy loss of every round, ordered, round 0 included."""
    points = []
    earlier: list[Evaluation] = []
    for record in ordered(history):
        judged = record.evaluation
        ends = interval(judged.policy_loss, judged.policy_loss_se) if judged else None
        points.append(
            PolicyLoss(
                round=record.round,
                policy_loss=judged.policy_loss if judged else None,
                policy_loss_se=judged.policy_loss_se if judged else None,
                lower=ends[0] if ends else None,
                upper=ends[1] if ends else None,
                action_error_degrees=judged.action_error_degrees if judged else None,
                fall_since_start=_fall(earlier[:1], judged),
                fall_since_last=_fall(earlier[-1:], judged),
                sets={s.dataset: s.policy_loss for s in judged.sets} if judged else {},
                normalization=judged.normalization if judged else None,
                seed=judged.seed if judged else None,
                times=judged.times if judged else None,
            )
        )
        earlier += [judged] if judged else []
    return tuple(points)


def action_error_history(history: Sequence[RoundRecord]) -> tuple[ActionError, ...]:
    """The action error of every round, ordered, round 0 included."""
    points = []
    earlier: list[Evaluation] = []
    for record in ordered(history):
        judged, by_clients = record.evaluation, record.client_evaluation
        ends = error_estimate(judged).interval if judged else None
        points.append(
            ActionError(
                round=record.round,
                action_error_degrees=judged.action_error_degrees if judged else None,
                lower=ends[0] if ends else None,
                upper=ends[1] if ends else None,
                fall_since_start=_fall(earlier[:1], judged, "action_error_degrees"),
                fall_since_last=_fall(earlier[-1:], judged, "action_error_degrees"),
                sets={s.dataset: s.action_error_degrees for s in judged.sets} if judged else {},
                joints={s.dataset: s.joint_error_degrees for s in judged.sets} if judged else {},
                held_out={s.client: s.score.action_error_degrees for s in by_clients.scores} if by_clients else {},
                normalization=judged.normalization if judged else None,
                seed=judged.seed if judged else None,
            )
        )
        earlier += [judged] if judged else []
    return tuple(points)


def error_estimate(judged: Evaluation) -> Estimate:
    """The mean action error over the sets, and how surely it is known from their episodes."""
    of_sets = [[(e.action_error_degrees, e.actions) for e in s.episodes] for s in judged.sets]
    return mean_of([weighted_mean([error for error, _ in one], [count for _, count in one]) for one in of_sets])


def _fall(before: Sequence[Evaluation], after: Evaluation | None, metric: Metric = "policy_loss") -> Fall | None:
    if after is None or not before or not measured_alike(before[0], after):
        return None
    found = paired_fall(before[0], after, metric)
    lower, upper = found.interval or (None, None)
    return Fall(since_round=before[0].round, fall=found.value, lower=lower, upper=upper)


def write_metrics(folder: Path, history: Sequence[RoundRecord]) -> None:
    """Write the histories (federated_metrics, policy_loss_history, action_error_history) and every round's
    server/round_N_server_eval.json.

    Raises:
        ReportError: a file cannot be written.
    """
    _write_json(folder / "federated_metrics.json", federated_metrics(history))
    _write_json(folder / "policy_loss_history.json", policy_loss_history(history))
    _write_json(folder / "action_error_history.json", action_error_history(history))
    for record in history:
        _write_json(folder / "server" / f"round_{record.round}_server_eval.json", server_eval(record))


def _write_json(path: Path, content: Record | Sequence[Record]) -> None:
    if isinstance(content, Record):
        plain: object = content.model_dump(mode="json")
    else:
        plain = [record.model_dump(mode="json") for record in content]
    write_bytes(path, (json.dumps(plain, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode())

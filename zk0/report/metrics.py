"""Metrics of a session for its metric files, ordered by round. A number that was not measured is None."""

from collections.abc import Sequence
from math import fsum, sqrt

from zk0.records import Evaluation, Rollout, RoundRecord, Update
from zk0.report.contributions import client_influences
from zk0.report.metric_records import (
    ActionError,
    AggregatedClients,
    ClientRoundMetrics,
    FederatedRound,
    Improvement,
    PolicyLoss,
    ServerEval,
    SuccessRate,
)
from zk0.stats.intervals import (
    EpisodeMetric,
    comparable,
    evaluation_estimate,
    paired_improvement,
    wilson_interval,
)
from zk0.stats.task_means import cross_task_loss, generalization_gap


def sorted_by_round(history: Sequence[RoundRecord]) -> list[RoundRecord]:
    """The history in the order of its rounds."""
    return sorted(history, key=lambda record: record.round)


def used_updates(record: RoundRecord) -> tuple[Update, ...]:
    """The updates that were aggregated."""
    used = {c.client for c in record.contributions}
    return tuple(u for u in record.updates if u.client in used)


def mean_or_none(values: Sequence[float]) -> float | None:
    """Mean; None without values.

    >>> mean_or_none([1.0, 2.0]), mean_or_none([])
    (1.5, None)
    """
    return fsum(values) / len(values) if values else None


def population_std(values: Sequence[float]) -> float | None:
    """Standard deviation with ddof 0; None without values.

    >>> population_std([1.0, 3.0]), population_std([])
    (1.0, None)
    """
    mean = mean_or_none(values)
    return None if mean is None else sqrt(fsum((v - mean) ** 2 for v in values) / len(values))


def success_rate(rollouts: Sequence[Rollout], round_number: int) -> SuccessRate | None:
    """Successes of a round's model in closed loop; None if it made no attempt.

    >>> success_rate([], 3) is None
    True
    """
    attempts = [attempt.success for attempt in rollouts if attempt.round == round_number]
    if not attempts:
        return None
    lower, upper = wilson_interval(sum(attempts), len(attempts))
    rate = sum(attempts) / len(attempts)
    return SuccessRate(successes=sum(attempts), attempts=len(attempts), rate=rate, lower=lower, upper=upper)


def server_eval(record: RoundRecord, rollouts: Sequence[Rollout] = ()) -> ServerEval:
    """Content of server/round_N_server_eval.json.

    Args:
        record: of the round.
        rollouts: closed-loop attempts of the session so far.
    """
    evaluation = record.evaluation
    return ServerEval(
        round=record.round,
        finished_at=record.finished_at,
        policy_loss=evaluation.policy_loss if evaluation else None,
        server_policy_loss=evaluation.policy_loss if evaluation else None,
        action_dim=next((len(s.joint_error_degrees) for s in evaluation.sets), None) if evaluation else None,
        policy_loss_se=evaluation.policy_loss_se if evaluation else None,
        action_error_degrees=evaluation.action_error_degrees if evaluation else None,
        success=success_rate(rollouts, record.round),
        cross_task_loss=cross_task_loss(record),
        generalization_gap=generalization_gap(record),
        evaluation=evaluation,
        client_evaluation=record.client_evaluation,
        aggregated_client_metrics=_aggregated_clients(record),
        individual_client_metrics=_client_metrics(record),
        refusals=record.refusals,
    )


def federated_metrics(history: Sequence[RoundRecord], rollouts: Sequence[Rollout] = ()) -> tuple[FederatedRound, ...]:
    """Content of federated_metrics.json: one entry per round. `rollouts` are the session's attempts so far."""
    rounds = []
    for record in sorted_by_round(history):
        decision, evaluation, by_clients = record.decision, record.evaluation, record.client_evaluation
        rounds.append(
            FederatedRound(
                round=record.round,
                policy_loss=evaluation.policy_loss if evaluation else None,
                server_policy_loss=evaluation.policy_loss if evaluation else None,
                action_error_degrees=evaluation.action_error_degrees if evaluation else None,
                success=success_rate(rollouts, record.round),
                cross_task_loss=cross_task_loss(record),
                generalization_gap=generalization_gap(record),
                unseen_policy_loss={s.dataset: s.policy_loss for s in evaluation.sets} if evaluation else {},
                unseen_by={s.dataset: s.unseen_by for s in evaluation.sets} if evaluation else {},
                held_out_policy_loss={s.client: s.score.policy_loss for s in by_clients.scores} if by_clients else {},
                lr=decision.lr if decision else None,
                mu=decision.mu if decision else None,
                lr_factor=decision.lr_factor if decision else None,
                reason=decision.reason if decision else None,
                seconds=record.seconds,
                aggregated_client_metrics=_aggregated_clients(record),
                individual_client_metrics=_client_metrics(record),
                refusals=record.refusals,
            )
        )
    return tuple(rounds)


def policy_loss_history(history: Sequence[RoundRecord]) -> tuple[PolicyLoss, ...]:
    """Content of policy_loss_history.json: one entry per round, round 0 included."""
    entries = []
    earlier: list[Evaluation] = []
    for record in sorted_by_round(history):
        evaluation = record.evaluation
        lower, upper = _interval(evaluation, "policy_loss")
        entries.append(
            PolicyLoss(
                round=record.round,
                policy_loss=evaluation.policy_loss if evaluation else None,
                policy_loss_se=evaluation.policy_loss_se if evaluation else None,
                lower=lower,
                upper=upper,
                action_error_degrees=evaluation.action_error_degrees if evaluation else None,
                improvement_since_start=_improvement(earlier[:1], evaluation, "policy_loss"),
                improvement_since_last=_improvement(earlier[-1:], evaluation, "policy_loss"),
                sets={s.dataset: s.policy_loss for s in evaluation.sets} if evaluation else {},
                normalization=evaluation.normalization if evaluation else None,
                seed=evaluation.seed if evaluation else None,
                times=evaluation.times if evaluation else None,
            )
        )
        earlier += [evaluation] if evaluation else []
    return tuple(entries)


def action_error_history(history: Sequence[RoundRecord]) -> tuple[ActionError, ...]:
    """Content of action_error_history.json: one entry per round, round 0 included."""
    entries = []
    earlier: list[Evaluation] = []
    for record in sorted_by_round(history):
        evaluation, by_clients = record.evaluation, record.client_evaluation
        lower, upper = _interval(evaluation, "action_error_degrees")
        entries.append(
            ActionError(
                round=record.round,
                action_error_degrees=evaluation.action_error_degrees if evaluation else None,
                lower=lower,
                upper=upper,
                improvement_since_start=_improvement(earlier[:1], evaluation, "action_error_degrees"),
                improvement_since_last=_improvement(earlier[-1:], evaluation, "action_error_degrees"),
                sets={s.dataset: s.action_error_degrees for s in evaluation.sets} if evaluation else {},
                joints={s.dataset: s.joint_error_degrees for s in evaluation.sets} if evaluation else {},
                held_out={s.client: s.score.action_error_degrees for s in by_clients.scores} if by_clients else {},
                normalization=evaluation.normalization if evaluation else None,
                seed=evaluation.seed if evaluation else None,
            )
        )
        earlier += [evaluation] if evaluation else []
    return tuple(entries)


def _client_metrics(record: RoundRecord) -> tuple[ClientRoundMetrics, ...]:
    contributions = {c.client: c for c in record.contributions}
    influences = client_influences(record)
    rows = []
    for update in sorted(record.updates, key=lambda u: u.client):
        contribution, influence = contributions.get(update.client), influences.get(update.client)
        rows.append(
            ClientRoundMetrics(
                client_id=update.client,
                dataset_name=update.dataset,
                train_frames=update.examples,
                weight=contribution.weight if contribution else None,
                cosine_to_mean=contribution.cosine_to_mean if contribution else None,
                share_of_delta=influence.share if influence else None,
                leave_one_out_shift=influence.leave_one_out_shift if influence else None,
                digest=update.digest,
                **update.metrics.model_dump(),
            )
        )
    return tuple(rows)


def _aggregated_clients(record: RoundRecord) -> AggregatedClients:
    used = [u.metrics for u in used_updates(record)]
    return AggregatedClients(
        avg_client_loss=mean_or_none([m.policy_loss for m in used]),
        std_client_loss=None if record.has_sum else population_std([m.policy_loss for m in used]),
        avg_client_proximal_loss=mean_or_none([m.fedprox_loss for m in used]),
        avg_client_grad_norm=mean_or_none([m.grad_norm for m in used]),
        num_clients=sum(update.client_count for update in used_updates(record)),
        param_update_norm=record.param_update_norm,
    )


def _interval(evaluation: Evaluation | None, metric: EpisodeMetric) -> tuple[float | None, float | None]:
    ends = evaluation_estimate(evaluation, metric).interval if evaluation else None
    return ends or (None, None)


def _improvement(before: Sequence[Evaluation], after: Evaluation | None, metric: EpisodeMetric) -> Improvement | None:
    if after is None or not before or not comparable(before[0], after):
        return None
    estimate = paired_improvement(before[0], after, metric)
    lower, upper = estimate.interval or (None, None)
    return Improvement(since_round=before[0].round, value=estimate.value, lower=lower, upper=upper)

"""Values of a round by key, as trackers log them: keys `server_*` and `client_<name>_*`."""

from collections.abc import Mapping, Sequence
from statistics import fmean, pstdev
from typing import Any, get_args

from zk0.records import Evaluation, Rollout, RoundRecord
from zk0.stats.intervals import EpisodeMetric, evaluation_estimate, wilson_interval
from zk0.stats.task_means import cross_task_loss, generalization_gap
from zk0.storage.redaction import public_name


def round_values(record: RoundRecord, rollouts: Sequence[Rollout] = ()) -> dict[str, float]:
    """Values of a round by key; a value that was not measured has no key.

    Args:
        record: of the round.
        rollouts: closed-loop attempts of the session.
    """
    values = {f"server_{key}": value for key, value in _server_values(record).items()}
    values |= {f"server_{key}": value for key, value in _success_values(record.round, rollouts).items()}
    for client, of_client in _client_values(record).items():
        values |= {f"client_{client}_{key}": value for key, value in of_client.items()}
    return {key: value for key, value in values.items() if value is not None}


def _server_values(record: RoundRecord) -> dict[str, Any]:
    decision, used = record.decision, {contribution.client for contribution in record.contributions}
    losses = [update.metrics.policy_loss for update in record.updates if update.client in used]
    return {
        **(_evaluation_values(record.evaluation) if record.evaluation else {}),
        "lr": decision and decision.lr,
        "mu": decision and decision.mu,
        "adaptive_factor": decision and decision.lr_factor,
        "param_update_norm": record.param_update_norm,
        "num_clients": sum(update.client_count for update in record.updates if update.client in used),
        "avg_client_loss": fmean(losses) if losses else None,
        "std_client_loss": pstdev(losses) if losses and not record.has_sum else None,
        "cross_task_loss": cross_task_loss(record),
        "generalization_gap": generalization_gap(record),
        "num_refused": len(record.refusals),
        "seconds": record.seconds,
        **{f"{stage.replace(' ', '_')}_seconds": seconds for stage, seconds in record.stage_seconds.items()},
    }


def _success_values(round_number: int, rollouts: Sequence[Rollout]) -> dict[str, float]:
    """Success rate of a round's attempts with its 95 % interval (Wilson), and that of the start policy."""
    attempts = [rollout.success for rollout in rollouts if rollout.round == round_number]
    at_start = [rollout.success for rollout in rollouts if rollout.round == 0]
    if not attempts:
        return {}
    lower, upper = wilson_interval(sum(attempts), len(attempts))
    values = {"success_rate": fmean(attempts), "success_rate_lower": lower, "success_rate_upper": upper}
    start = {"start_success_rate": fmean(at_start)} if at_start else {}
    return {**values, "attempts": float(len(attempts)), **start}


def _evaluation_values(evaluation: Evaluation) -> dict[str, Any]:
    """Loss and action error with the ends of their 95 % intervals, and the loss on each set."""
    values: dict[str, Any] = {
        "policy_loss": evaluation.policy_loss,
        "policy_loss_se": evaluation.policy_loss_se,
        "action_error_degrees": evaluation.action_error_degrees,
    }
    for metric in get_args(EpisodeMetric):
        lower, upper = evaluation_estimate(evaluation, metric).interval or (None, None)
        values |= {f"{metric}_lower": lower, f"{metric}_upper": upper}
    return values | {f"{public_name(s.dataset)}_policy_loss": s.policy_loss for s in evaluation.sets}


def _client_values(record: RoundRecord) -> Mapping[str, dict[str, Any]]:
    """Return the values of each client; without mu and factor if it began in an earlier round, which decided them."""
    values: dict[str, dict[str, Any]] = {}
    for update in record.updates:
        metrics, decision = update.metrics, record.decision if update.round == record.round else None
        values[update.client] = {
            "policy_loss": metrics.policy_loss,
            "fedprox_loss": metrics.fedprox_loss,
            "grad_norm": metrics.grad_norm,
            "update_norm": metrics.update_norm,
            "local_steps": metrics.local_steps,
            "lr": metrics.lr_first,
            "mu": decision.mu if decision else None,
            "adaptive_factor": decision.client_lr_factors.get(update.client, 1.0) if decision else None,
            "train_seconds": metrics.seconds,
        }
    for contribution in record.contributions:
        values.setdefault(contribution.client, {}).update(
            weight=contribution.weight, cosine_to_mean=contribution.cosine_to_mean
        )
    for scored in record.client_evaluation.scores if record.client_evaluation else ():
        values.setdefault(scored.client, {}).update(
            held_out_policy_loss=scored.score.policy_loss,
            held_out_action_error_degrees=scored.score.action_error_degrees,
        )
    return values

"""Policy loss of a round's global model over all tasks, and its gap between tasks that clients have and unseen ones."""

from statistics import fmean

from zk0.records import RoundRecord


def cross_task_loss(record: RoundRecord) -> float | None:
    """Mean policy loss over the held-out episodes of each client and over each unseen dataset, all with equal weight.

    None if the round was evaluated on neither.
    """
    losses = [*_held_out_losses(record), *_unseen_losses(record)]
    return fmean(losses) if losses else None


def generalization_gap(record: RoundRecord) -> float | None:
    """Mean loss on unseen datasets minus mean loss on clients' held-out episodes; None if one of the two is missing.

    It is the participation gap of Yuan et al., What Do We Mean by Generalization in Federated Learning? (arXiv
    2110.14216): above zero, the model is worse where no client trains.
    """
    seen, unseen = _held_out_losses(record), _unseen_losses(record)
    return fmean(unseen) - fmean(seen) if seen and unseen else None


def _held_out_losses(record: RoundRecord) -> list[float]:
    return [s.score.policy_loss for s in record.client_evaluation.scores] if record.client_evaluation else []


def _unseen_losses(record: RoundRecord) -> list[float]:
    return [s.policy_loss for s in record.evaluation.sets] if record.evaluation else []

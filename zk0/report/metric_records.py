"""Records of the metric files of a session. A number that was not measured is None."""

from zk0.records import ClientEvaluation, Evaluation, Record, Refusal, UnseenBy


class ClientRoundMetrics(Record):
    """Metrics of one client's update in one round."""

    client_id: str
    dataset_name: str
    policy_loss: float
    """Mean of the policy's own loss over the optimizer steps."""
    fedprox_loss: float
    """mu/2 * ||w - w_global||^2 at the last step."""
    grad_norm: float
    update_norm: float
    local_steps: int
    lr_first: float
    lr_last: float
    seconds: float
    train_frames: int
    weight: float | None
    """Weight in the average; None if the update was not used."""
    cosine_to_mean: float | None
    share_of_delta: float | None
    """Share of the aggregated delta (`Influence.share`); None if the delta is not a weighted mean of the updates."""
    leave_one_out_shift: float | None
    """Relative change of the aggregated delta without this client (`Influence.leave_one_out_shift`)."""
    digest: str


class AggregatedClients(Record):
    """Unweighted means over the clients whose update was used; std has ddof 0."""

    avg_client_loss: float | None
    """Mean of `policy_loss`."""
    std_client_loss: float | None
    avg_client_proximal_loss: float | None
    avg_client_grad_norm: float | None
    num_clients: int
    param_update_norm: float | None
    """L2 norm of the aggregated delta."""


class SuccessRate(Record):
    """Closed-loop attempts of one round's model, all tasks together."""

    successes: int
    attempts: int
    rate: float
    lower: float
    """Ends of the 95 % interval (Wilson)."""
    upper: float


class ServerEval(Record):
    """Content of server/round_N_server_eval.json: one round."""

    round: int
    finished_at: str
    policy_loss: float | None
    server_policy_loss: float | None
    """The same number as `policy_loss`, under the name that W&B has."""
    action_dim: int | None
    """Number of joints of the evaluated actions."""
    policy_loss_se: float | None
    action_error_degrees: float | None
    success: SuccessRate | None
    cross_task_loss: float | None
    """Mean policy loss over clients' held-out episodes and unseen datasets (`zk0.stats.task_means`)."""
    generalization_gap: float | None
    """Mean loss on unseen datasets minus that on clients' held-out episodes."""
    evaluation: Evaluation | None
    client_evaluation: ClientEvaluation | None
    aggregated_client_metrics: AggregatedClients
    individual_client_metrics: tuple[ClientRoundMetrics, ...]
    refusals: tuple[Refusal, ...]


class FederatedRound(Record):
    """One entry of federated_metrics.json."""

    round: int
    policy_loss: float | None
    server_policy_loss: float | None
    """The same number as `policy_loss`, under the name that W&B has."""
    action_error_degrees: float | None
    success: SuccessRate | None
    cross_task_loss: float | None
    """Mean policy loss over clients' held-out episodes and unseen datasets (`zk0.stats.task_means`)."""
    generalization_gap: float | None
    """Mean loss on unseen datasets minus that on clients' held-out episodes."""
    unseen_policy_loss: dict[str, float]
    """By dataset that no client trains on."""
    unseen_by: dict[str, UnseenBy | None]
    """By the same dataset: whether its tasks are unseen, or only its episodes."""
    held_out_policy_loss: dict[str, float]
    """By client, on its own held-out episodes."""
    lr: float | None
    mu: float | None
    lr_factor: float | None
    reason: str | None
    seconds: float
    aggregated_client_metrics: AggregatedClients
    individual_client_metrics: tuple[ClientRoundMetrics, ...]
    refusals: tuple[Refusal, ...]


class Improvement(Record):
    """Decrease of the policy loss or the action error since an earlier round, paired over episodes."""

    since_round: int
    value: float
    lower: float | None
    """Ends of the 95 % interval (Student's t); None where a set has a single episode."""
    upper: float | None


class ActionError(Record):
    """One entry of action_error_history.json: mean absolute error of the predicted chunks on the evaluation sets."""

    round: int
    action_error_degrees: float | None
    lower: float | None
    """Ends of the 95 % interval over episodes (Student's t); None where a set has a single episode."""
    upper: float | None
    improvement_since_start: Improvement | None
    """Since the first evaluated round; None for that round, and if the two evaluations are not comparable."""
    improvement_since_last: Improvement | None
    """Since the evaluated round before."""
    sets: dict[str, float]
    joints: dict[str, tuple[float, ...]]
    """By set, one value per joint."""
    held_out: dict[str, float]
    """By client, on its own held-out episodes."""
    normalization: str | None
    seed: int | None


class PolicyLoss(Record):
    """One entry of policy_loss_history.json: policy loss of the global model on the evaluation sets."""

    round: int
    policy_loss: float | None
    policy_loss_se: float | None
    """Standard error over episodes."""
    lower: float | None
    """Ends of the 95 % interval over episodes (Student's t); None where a set has a single episode."""
    upper: float | None
    action_error_degrees: float | None
    improvement_since_start: Improvement | None
    """Since the first evaluated round; None for that round, and if the two evaluations are not comparable."""
    improvement_since_last: Improvement | None
    """Since the evaluated round before."""
    sets: dict[str, float]
    normalization: str | None
    seed: int | None
    times: int | None

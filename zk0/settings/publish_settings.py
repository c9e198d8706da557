"""Settings of publishing: metrics at Weights & Biases, the last checkpoint on the Hugging Face Hub."""

from typing import Annotated, Literal

from pydantic import Field

from zk0.records import Record

HubName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,95}/[A-Za-z0-9][A-Za-z0-9_.-]{0,95}$")]
"""`user/name` of a repository on the Hub."""


class TrackingSettings(Record):
    """Logging of each round's metrics to trackers, and what Prefect's UI shows of each client."""

    wandb: Literal["off", "offline", "online"] = Field(
        default="off",
        description="offline: write the run to the session's folder, for a later `wandb sync`; needs no account",
    )
    mlflow: str | None = Field(
        default=None,
        pattern=r"^https?://[^\s@]+$",
        description="address of an MLflow server, such as http://127.0.0.1:5000; MLFLOW_TRACKING_TOKEN is its token, "
        "if it needs one; unset: none",
    )
    tensorboard: bool = Field(
        default=False, description="write event files into the session's folder, for `tensorboard --logdir`"
    )
    project: str = Field(
        default="zk0", min_length=1, description="project of the run at Weights & Biases, experiment of MLflow"
    )
    entity: str | None = Field(default=None, description="user or team of the project; unset: the account's default")
    client_task_runs: int = Field(
        default=100,
        ge=0,
        description="most clients of a round that have a task run each in Prefect's UI; with more, only the round's "
        "task run has their lines, and tables their mean and extremes, which keeps the Prefect server fast",
    )

    @property
    def services(self) -> tuple[str, ...]:
        """Names of the services that each round's metrics are sent to; empty: none."""
        wandb = (f"Weights & Biases ({self.wandb})",) if self.wandb != "off" else ()
        mlflow = (f"MLflow at {self.mlflow}",) if self.mlflow else ()
        return (*wandb, *mlflow, *(("TensorBoard",) if self.tensorboard else ()))


class PublishSettings(Record):
    """Whether and where the last checkpoint is published."""

    repo_id: HubName | None = Field(
        default=None, description="user/name of a model repository on the Hub; unset: nothing is published"
    )
    private: bool = Field(default=True, description="create the repository as private, if it does not exist")
    min_rounds: int = Field(default=20, ge=1, description="minimum number of finished rounds")
    approval: bool = Field(
        default=False, description="wait for a person's approval in the Prefect UI before publishing"
    )
    approval_timeout_seconds: int = Field(
        default=7 * 86400, ge=1, description="time limit for the approval; nothing is published after it"
    )
    retry_seconds: tuple[float, ...] = Field(
        default=(10.0, 60.0, 300.0), description="waits between attempts while the Hub does not respond"
    )

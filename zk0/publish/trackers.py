"""All trackers of a session: Weights & Biases, MLflow and TensorBoard, as its settings ask for."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from pydantic import SecretStr

from zk0.errors import PublishError
from zk0.publish.metrics_tracker import MetricsTracker
from zk0.publish.mlflow_tracker import MLFLOW_TOKEN, open_mlflow_tracker
from zk0.publish.tensorboard_tracker import TensorBoardTracker
from zk0.publish.wandb_tracker import WANDB_KEY, open_wandb_tracker
from zk0.settings.session import Session

_open: dict[str, tuple[MetricsTracker, ...]] = {}


@contextmanager
def open_trackers(
    session: Session, name: str, folder: Path, secrets: Mapping[str, SecretStr | None]
) -> Iterator[tuple[MetricsTracker, ...]]:
    """Open the runs of a session at every service that `[tracking]` names; the end of the block finishes them.

    Args:
        session: its settings.
        name: of the session's folder.
        folder: of the session.
        secrets: value of WANDB_KEY and MLFLOW_TOKEN; None where there is none.

    Raises:
        PublishError: a service refuses.
        TrackerUnavailable: a service does not respond.
    """
    wanted = session.tracking
    with ExitStack() as stack:
        found: list[MetricsTracker] = []
        if wanted.wandb != "off":
            found.append(stack.enter_context(open_wandb_tracker(session, name, folder, secrets[WANDB_KEY])))
        if wanted.mlflow:
            found.append(stack.enter_context(open_mlflow_tracker(session, name, secrets[MLFLOW_TOKEN])))
        if wanted.tensorboard:
            found.append(TensorBoardTracker(folder))
        _open[name] = tuple(found)
        stack.callback(_open.pop, name)
        yield _open[name]


def current_trackers(name: str) -> tuple[MetricsTracker, ...]:
    """Return the open runs of a session.

    Raises:
        PublishError: none of this session is open in this process.
    """
    if name not in _open:
        raise PublishError(f"{name}: no tracker is open in this process")
    return _open[name]

"""A session as one run of Weights & Biases: one step per round, with keys `server_*` and `client_<name>_*`.

The run has the name of the session's folder, so a resumed session continues its run. An offline run is written to the
session's folder; `wandb sync` uploads it later.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from zk0.errors import PublishError, TrackerUnavailable, first_line
from zk0.publish.metrics_tracker import MetricsTracker
from zk0.records import RoundRecord
from zk0.settings.session import Session
from zk0.storage.redaction import public_values

WANDB_KEY = "WANDB_API_KEY"
"""Name of the environment variable with the key."""


class WandbTracker(MetricsTracker):
    """An open run of Weights & Biases."""

    def __init__(self, run: Any) -> None:
        self._run = run
        super().__init__(int(run.step))

    def write_round(self, record: RoundRecord, values: Mapping[str, float]) -> None:
        """Log the values with the round as step."""
        self._run.log(dict(values), step=record.round)


@contextmanager
def open_wandb_tracker(session: Session, name: str, folder: Path, key: SecretStr | None) -> Iterator[WandbTracker]:
    """Open the run of a session; the end of the block finishes it, with exit code 1 if the block raises.

    Args:
        session: its tracking settings, and the settings that are logged.
        name: of the session's folder; name and id of the run.
        folder: of the session; local files of the run are written there.
        key: None: the key of `wandb login`.

    Raises:
        PublishError: W&B refuses the key or a setting.
        TrackerUnavailable: W&B does not respond.
    """
    import wandb
    from wandb.errors import AuthenticationError, CommError, Error

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
        wandb.teardown()  # else its background process takes the next attempt for a second run of this id
        if isinstance(e, CommError) and not isinstance(e, AuthenticationError):
            raise TrackerUnavailable(f"Weights & Biases: {first_line(e)}; a later attempt may succeed") from e
        raise PublishError(
            f"Weights & Biases: {first_line(e)}; expected {WANDB_KEY}, or tracking.wandb = 'offline'"
        ) from e
    code = 1
    try:
        yield WandbTracker(run)
        code = 0
    finally:
        run.finish(exit_code=code)

"""Records of closed-loop attempts in the simulator, and of videos of recorded episodes."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import computed_field, model_validator

from zk0.records.record import Record


class TimedResult(Record):
    """Base of results with a duration, which files also hold as `duration`."""

    duration_seconds: float
    """Of an attempt: simulated time until success or the step limit. Of an episode: its recorded time."""

    @model_validator(mode="before")
    @classmethod
    def _drop_second_name(cls, values: Any) -> Any:
        if not isinstance(values, Mapping) or "duration" not in values:
            return values
        if values["duration"] != values.get("duration_seconds"):
            raise ValueError(f"duration {values['duration']}, expected the same as duration_seconds")
        return {key: value for key, value in values.items() if key != "duration"}

    @computed_field  # type: ignore[prop-decorator]
    @property
    def duration(self) -> float:
        """The same number as `duration_seconds`."""
        return self.duration_seconds


class RolloutSubject(Record):
    """The model and the task of a rollout."""

    round: int | None
    """None for a policy that no session trained."""
    checkpoint: str
    """Digest of the weights."""
    task: str
    client: str | None = None
    """The client whose dataset has this task; None if no client trained on it."""
    policy_loss: float | None = None
    """Loss of this model on the evaluation episodes of this task; None if there are none."""
    conditions_digest: str
    """SHA-256 of the conditions: simulator settings, step limit, steps between predictions."""


class Rollout(TimedResult, RolloutSubject):
    """One closed-loop attempt in the simulator."""

    kind: Literal["closed-loop"] = "closed-loop"
    seed: int
    success: bool
    steps: int
    fps: float
    smoothness: float | None
    """Spectral arc length of the joint path (`zk0.stats.smoothness`): 0 is perfectly smooth; None without motion."""
    video: str | None = None
    """Path relative to the session folder."""
    camera_rows: tuple[int, int] | None = None
    """First row and end row of the camera images in the video; the other rows are drawn."""
    video_error: str | None = None
    """Why a requested video is missing."""


class EpisodeVideo(TimedResult):
    """Video of one recorded episode, with the actions that a model predicts in each frame."""

    kind: Literal["open-loop"] = "open-loop"
    round: int
    checkpoint: str
    """Digest of the weights."""
    dataset: str
    client: str | None
    """The client that holds the episode out; None for an episode of the server's evaluation sets."""
    episode: int
    """Index as stored in the dataset."""
    success: None = None
    """Always None: no action is executed. Results of both kinds have the field."""
    fps: float
    policy_loss: float | None
    """Loss of this model on this episode; None if none of its frames was evaluated."""
    action_error_degrees: float | None
    video: str | None = None
    """Path relative to the session folder; on a node, to the client's own folder."""
    camera_rows: tuple[int, int] | None = None
    """First row and end row of the camera images in the video; the other rows are drawn."""
    video_error: str | None = None
    """Why the video is missing."""

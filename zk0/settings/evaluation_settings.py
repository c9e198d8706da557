"""Settings of the evaluation: losses on held-out and unseen data, closed-loop rollouts, videos."""

from pydantic import Field, field_validator

from zk0.records import Record
from zk0.settings.dataset_settings import EvaluationSetSettings


class EvaluationSettings(Record):
    """When and how the global model is evaluated on recorded episodes."""

    datasets: tuple[EvaluationSetSettings, ...] = Field(
        default=(),
        description="evaluation sets of the server; empty with [partition]: the held-out episodes of its dataset",
    )
    optional_datasets: bool = Field(
        default=False, description="also evaluate on the evaluation sets that are marked as optional"
    )
    frequency: int = Field(
        default=1, ge=1, description="evaluate on the server's evaluation sets every N rounds and after the last round"
    )
    clients_frequency: int = Field(
        default=1,
        ge=0,
        description="evaluate on the clients' held-out episodes every N rounds and after the last round; 0: never",
    )
    joining_report: bool = Field(
        default=False,
        description="after the last round each client also trains alone, for as many rounds, and reports what joining "
        "the session brought it on its held-out episodes",
    )
    times: int = Field(default=8, ge=1, description="stratified flow-matching times per frame")
    batch_size: int = Field(default=32, ge=1, description="frames per batch")
    every_frames: int = Field(
        default=4,
        ge=1,
        description="evaluate on frames 0, N, 2N, ... of each episode; neighboring frames give nearly the same loss",
    )

    def used_datasets(self) -> tuple[EvaluationSetSettings, ...]:
        """The evaluation sets, without the optional ones unless they are asked for."""
        return tuple(one for one in self.datasets if self.optional_datasets or not one.optional)


class RolloutSettings(Record):
    """Closed-loop attempts in the simulator, with the same seeds for every model."""

    tasks: tuple[str, ...] = Field(default=(), description="tasks of the simulator; empty: no rollouts")
    seeds: tuple[int, ...] = Field(
        default=(9000,), min_length=1, description="seeds of the attempts: one attempt per task and seed"
    )
    max_steps: int = Field(default=60, ge=1, description="an attempt fails after this many steps")
    replan_steps: int = Field(
        default=5, ge=1, description="actions of a chunk to execute before the policy predicts the next chunk"
    )
    environments: int = Field(
        default=4, ge=1, description="attempts that run in parallel with batched predictions; 200 MB of memory each"
    )
    base: bool = Field(default=True, description="roll out the model of round 0, too, for comparison")
    frequency: int = Field(default=0, ge=0, description="rounds between rollouts; 0: after the last round only")
    keep_dataset: bool = Field(
        default=False, description="save the attempts as a LeRobot dataset in the folder of their videos"
    )

    @field_validator("seeds")
    @classmethod
    def _seeds_differ(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(seeds)) < len(seeds):
            raise ValueError(f"{len(seeds)} seeds, {len(set(seeds))} of them different; expected each once")
        return seeds


class VideoSettings(Record):
    """Videos of rollouts, and of predictions on evaluation episodes."""

    frequency: int = Field(
        default=0,
        ge=0,
        description="rounds between videos, among the rounds that are evaluated or rolled out; 0: after the last round "
        "only. Attempts of round 0 have videos, too",
    )
    rollouts: int = Field(
        default=1, ge=0, description="recorded attempts per task: those with the first seeds; 0: none"
    )
    episodes: int = Field(
        default=1,
        ge=0,
        description="rendered evaluation episodes per dataset, with predicted and recorded actions; 0: none",
    )
    camera_height: int = Field(default=240, ge=64, description="height of a camera image in a video, in pixels")
    analysis: bool = Field(
        default=True,
        description="measure the motion in all videos at the end of the session: evaluate/video_analysis.json, and "
        "videos of the same attempt in several rounds side by side",
    )

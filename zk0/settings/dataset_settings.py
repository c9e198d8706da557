"""Settings of the data: clients and their datasets, evaluation sets, the dataset contract, the split, the simulator."""

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from zk0.records import MAX_INDEX, JointUnits, Record

SO101_JOINTS = (
    "shoulder_pan.pos",
    "shoulder_lift.pos",
    "elbow_flex.pos",
    "wrist_flex.pos",
    "wrist_roll.pos",
    "gripper.pos",
)
"""Names of the dimensions of state and action, as LeRobot records an SO-101 arm."""


def with_scheme(dataset: str) -> str:
    """A dataset as its URI: an absolute path, or one that begins with ~, is a folder of this machine.

    >>> with_scheme("/data/arm"), with_scheme("~/arm"), with_scheme("hf:lab/arm"), with_scheme("lab/arm")
    ('local:/data/arm', 'local:~/arm', 'hf:lab/arm', 'lab/arm')
    """
    return f"local:{dataset}" if dataset.startswith(("/", "~")) else dataset


DatasetUri = Annotated[
    str,
    Field(
        min_length=1, description="hf:user/name, hf:user/name@REVISION, local:/path (or the absolute path) or sim:task"
    ),
    AfterValidator(with_scheme),
]
SafeName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=64)]
"""A name that can be part of a file name on every system."""
LOCAL_SCHEME = "local:"
_UNITS = "units of state and action; unset: those that the joint names or the values allow, else the contract's"
_PLACE = "folder of this machine where the dataset lies, if not where `dataset` says; records keep the name `dataset`"
_RENAME_MAP = "feature key in the dataset -> feature key in the contract"
_EXPECTED_EPISODES = "number of episodes that the dataset must have, else it may not take part; unset: any number"


class UsedDataset(Record):
    """A dataset that a session uses, and how its features are read."""

    dataset: DatasetUri
    place: str | None = Field(default=None, description=_PLACE)
    rename_map: dict[str, str] = Field(default={}, description=_RENAME_MAP)
    units: JointUnits | None = Field(default=None, description=_UNITS)
    expected_episodes: int | None = Field(default=None, ge=1, description=_EXPECTED_EPISODES)

    @property
    def location(self) -> str:
        """URI of the place where the dataset lies on this machine."""
        return self.dataset if self.place is None else f"{LOCAL_SCHEME}{self.place}"


class ClientSettings(UsedDataset):
    """One client and its dataset."""

    name: SafeName = Field(description="name of the client's folder, and of its series in charts")
    partition_index: int = Field(
        default=0, ge=0, description="index of the client among those that share the dataset (see partition_count)"
    )
    partition_count: int = Field(
        default=1,
        ge=1,
        description="number of clients that share the dataset: this one gets the episodes with episode_index % "
        "partition_count == partition_index",
    )
    from_round: int = Field(
        default=1, ge=1, description="first round in which the client takes part; above 1 it joins a running session"
    )
    share_joining_report: bool = Field(
        default=False,
        description="send the report of evaluation.joining_report to the server; else the client keeps it",
    )

    allow_repair: bool = Field(
        default=True, description='whether `data.repair = "repair"` may write a repaired copy into the client\'s cache'
    )

    @model_validator(mode="after")
    def _index_below_count(self) -> Self:
        if self.partition_index >= self.partition_count:
            raise ValueError(
                f"partition_index {self.partition_index} must be below partition_count {self.partition_count}"
            )
        return self


class PartitionSettings(UsedDataset):
    """One dataset shared by several clients, split by `episode_index % clients`; it takes the place of [[clients]]."""

    clients: int = Field(ge=1, description="number of clients that share the dataset; they are named client_0, ...")


class EvaluationSetSettings(UsedDataset):
    """One evaluation set: a dataset that no client trains on."""

    optional: bool = Field(default=False, description="used only with `evaluation.optional_datasets`")
    first_episodes: int | None = Field(
        default=None, ge=1, description="evaluate on the first N episodes only; not together with last_episodes"
    )
    last_episodes: int | None = Field(
        default=None, ge=1, description="evaluate on the last N episodes only; unset: on all episodes"
    )

    @model_validator(mode="after")
    def _one_end(self) -> Self:
        if self.first_episodes and self.last_episodes:
            raise ValueError("first_episodes and last_episodes: give one of them")
        return self


class ContractSettings(Record):
    """The dataset contract: features, rate and units that every dataset of the federation must have."""

    cameras: tuple[str, ...] = Field(
        default=("overhead", "wrist"),
        min_length=1,
        max_length=64,
        description="camera names, without `observation.images.`",
    )
    joints: tuple[str, ...] = Field(
        default=SO101_JOINTS,
        min_length=1,
        max_length=1024,
        description="names of the dimensions of state and action, in order",
    )
    fps: float | None = Field(
        default=None, gt=0, le=10_000, description="frames per second; unset: that of the evaluation sets"
    )
    units: JointUnits = Field(
        default="degrees", description="units of state and action; `normalized` is LeRobot's -100..100"
    )
    other_groups: bool = Field(
        default=False,
        description="also admit SO-100/SO-101 datasets with other known joint names or in other units than the "
        "contract's; statistics are then pooled per group of datasets with the same joints and units",
    )


class DataSettings(Record):
    """How each client splits its dataset."""

    holdout_episodes: int = Field(
        default=1, ge=0, le=MAX_INDEX, description="the last N episodes are held out: evaluated on, never trained on"
    )
    repair: Literal["refuse", "repair"] = Field(
        default="refuse",
        description="refuse: a dataset with errors may not take part, and the message names the repair; repair: a "
        "repaired copy in the client's cache takes part, and the original stays as it is",
    )


class SimulatorSettings(Record):
    """How the simulator records `sim:` datasets and sets up rollouts."""

    episodes: int = Field(default=12, ge=1, le=10**9, description="episodes of a `sim:` dataset")
    disturbances: bool = Field(
        default=False,
        description="whether the expert of a `sim:` dataset is disturbed and corrects itself, as a person does: a "
        "policy learns from that how to recover",
    )
    first_seed: int = Field(
        default=1000,
        ge=0,
        lt=2**31,
        description="seed of a dataset's first episode; each task adds an offset of its own",
    )
    image_size: int = Field(default=96, ge=32, le=10**6, description="width and height of a camera image, in pixels")
    spawn_radius_m: tuple[float, float] = Field(
        default=(0.09, 0.14), description="smallest and largest distance of a cube from the arm's base, in meters"
    )
    spawn_half_angle_degrees: float = Field(
        default=25.0, gt=0, le=90, description="largest angle of a cube to either side of the arm's forward direction"
    )

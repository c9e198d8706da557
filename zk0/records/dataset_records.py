"""Records of datasets: what a check finds, how the episodes are split, and what a client reports when it joins."""

from typing import Annotated, Literal, Self

from pydantic import Field

from zk0.records.bounds import (
    MAX_TEXT,
    Count,
    DigestText,
    Frames,
    Index,
    Name,
    ParameterPatterns,
    PathSketch,
    Seconds,
    Text,
)
from zk0.records.record import Record

STATE = "observation.state"
"""LeRobot's feature key of the state."""
ACTION = "action"
"""LeRobot's feature key of the action."""
CAMERA_PREFIX = "observation.images."
"""Prefix of LeRobot's feature keys of camera images."""


MAX_LISTED_EPISODES = 100_000
"""Most episodes that a finding lists."""
CalibrationName = Literal["pos", "main", "plain"]
"""Known joint names of an SO-100 or SO-101 arm (`zk0.data.calibrations`)."""
JointUnits = Literal["degrees", "radians", "normalized"]
"""Units in which a policy may be trained; `normalized` is LeRobot's -100..100."""


DataQuality = Literal["clean", "warnings", "repaired", "errors"]
"""Quality of a dataset by its check: no finding; warnings only; takes part as a repaired copy; errors."""


class Finding(Record):
    """One violation of a dataset rule."""

    rule: Text
    severity: Literal["error", "warning"] = "error"
    """An error keeps the dataset out of a federation, a warning does not."""
    where: Text
    found: Text
    expected: Text
    repair: Text | None = None
    """Name of the repair that fixes it; None: it cannot be repaired."""
    episodes: tuple[Index, ...] = Field(default=(), max_length=MAX_LISTED_EPISODES)
    """The episodes that it concerns, without impossible numbers; empty: the whole dataset, or they are not known."""

    def __str__(self) -> str:
        return f"{self.rule}: {self.where}: found {self.found}, expected {self.expected}"


class DatasetReport(Record):
    """Result of a dataset check. Facts are None where the files are too broken to read them."""

    dataset: Name
    root: Text
    findings: tuple[Finding, ...] = ()
    robot_type: Text | None = None
    fps: float | None = Field(default=None, gt=0, le=10_000, strict=True)
    episodes: Count | None = None
    frames: Count | None = None
    cameras: tuple[Text, ...] = ()
    state_names: tuple[Text, ...] = ()
    action_names: tuple[Text, ...] = ()
    tasks: tuple[Text, ...] = ()
    units: Literal["degrees", "radians", "ticks", "normalized"] | None = None
    """Units of state and action: those that the session or the joint names state, else those that the numbers allow;
    None if they fit several units."""
    repairs: tuple[Text, ...] = ()
    """Repairs of the copy that takes part (`data.repair = "repair"`); empty: the dataset takes part as it is."""
    commit: DigestText | None = None
    """Commit on the Hub that was downloaded; None: the dataset does not come from there."""
    calibration: CalibrationName | None = None
    """Calibration of an admitted SO arm, where the contract allows several; None: the contract's joints."""

    @property
    def errors(self) -> tuple[Finding, ...]:
        """The findings that keep this dataset out of a federation."""
        return tuple(f for f in self.findings if f.severity == "error")

    @property
    def quality(self) -> DataQuality:
        """The first of these that applies: errors, repaired, warnings, clean."""
        if self.errors:
            return "errors"
        if self.repairs:
            return "repaired"
        return "warnings" if self.findings else "clean"

    @property
    def episode_rules(self) -> dict[int, tuple[str, ...]]:
        """Episode -> the rules that it breaks; episodes that break none are missing."""
        found: dict[int, dict[str, None]] = {}
        for finding in self.findings:
            for episode in finding.episodes:
                found.setdefault(episode, {})[finding.rule] = None
        return {episode: tuple(found[episode]) for episode in sorted(found)}


class Split(Record):
    """Indices of the episodes, as stored in the dataset, that are trained on and that are held out."""

    train: tuple[Index, ...]
    held_out: tuple[Index, ...] = ()


MomentValues = Annotated[tuple[Annotated[float, Field(strict=True)], ...], Field(max_length=10_000)]
"""One number for each dimension of a feature."""


class Moments(Record):
    """Count, mean, std (ddof 0), min and max of each dimension of a feature, in the units of the dataset."""

    count: int = Field(strict=True, ge=1, le=10**12)
    """Measured frames; 1 for statistics that a policy carries, because policies do not store it."""
    mean: MomentValues
    std: MomentValues
    min: MomentValues
    max: MomentValues


class Statistics(Record):
    """Moments of state and action over training frames, which normalization needs."""

    state: Moments
    action: Moments

    def with_count(self, count: int) -> "Statistics":
        """The same moments as if they were of another number of frames."""
        state, action = (moments.model_copy(update={"count": count}) for moments in (self.state, self.action))
        return Statistics(state=state, action=action)


NormalizationKind = Literal["policy", "pooled", "client"]
"""Whose statistics normalize states and actions: the start policy's, all clients' together, each client's own."""


class StatisticsGroup(Record):
    """Clients whose datasets have the same joints and units, and the statistics pooled over them."""

    calibration: CalibrationName | None
    """None: the joints are those of the contract."""
    units: JointUnits
    clients: tuple[str, ...]
    evaluation_sets: tuple[str, ...] = ()
    """Datasets of the server's evaluation sets that are normalized with these statistics."""
    statistics: Statistics

    @classmethod
    def of_all(cls, statistics: Statistics, units: JointUnits) -> Self:
        """The only group of a session whose clients all have the contract's joints and units."""
        return cls(calibration=None, units=units, clients=(), statistics=statistics)

    @property
    def name(self) -> str:
        """Name of the group, also of its folder in a saved policy: `main-degrees`, `pos-normalized`, `degrees`."""
        return f"{self.calibration}-{self.units}" if self.calibration else self.units


class PolicyRecipe(Record):
    """Everything that a client needs to build the same policy as the server, apart from the trained weights."""

    path: str = Field(max_length=MAX_TEXT)
    """`policy.path` of the settings."""
    revision: str | None = Field(default=None, max_length=MAX_TEXT)
    """Commit on the Hub."""
    cameras: tuple[Name, ...] = Field(max_length=64)
    joints: int = Field(strict=True, ge=1, le=1024)
    """Dimensions of state and action."""
    seed: int = Field(strict=True, ge=0, lt=2**63)
    """Seed of the initial weights."""
    frozen_digest: DigestText | None = None
    """SHA-256 of the server's frozen weights; a client that builds other ones gets an error."""
    type: Name = "smolvla"
    """LeRobot's type of the policy; `smolvla` also for `smolvla_bundled`. Reports name the policy by it."""
    trained: ParameterPatterns = ()
    """Patterns of the parameters that are trained; empty: those of the scope `expert`."""
    personal: ParameterPatterns = ()
    """Patterns of the trained parameters that each client keeps for itself; all others are sent."""


JoiningStepName = Literal["fetch", "repair", "check", "split", "statistics"]
"""What a client does when it joins, in this order."""


class JoiningStep(Record):
    """One step of a client that joins; the server shows it and decides nothing by it."""

    step: JoiningStepName
    seconds: Seconds
    found: Text = ""
    """What it brought; empty where it failed."""
    failed: bool = False


class Member(Record):
    """What a client reports to the server when it joins: counts, moments and digests, but no frame."""

    client: Name
    dataset: Name
    report: DatasetReport
    split: Split
    train_frames: Frames
    statistics: Statistics
    """Moments of the training episodes."""
    train_digests: tuple[DigestText, ...]
    """SHA-256 of states and actions of each training episode."""
    held_out_digests: tuple[DigestText, ...]
    """SHA-256 of states and actions of each held-out episode."""
    path_sketches: tuple[PathSketch, ...] = ()
    """Sketch of each training episode, then of each held-out one; empty: from a client that makes none."""

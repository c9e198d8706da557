"""`meta/info.json` of a LeRobot data set, v2.0 to v3.0."""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from zk0.records import ACTION, CAMERA_PREFIX, STATE
from zk0.robot.folder import BrokenFile, Folder

INFO_PATH = "meta/info.json"
ALIASES = {
    STATE: ("state", "observation.joint_positions", "observation.joints", "observation.qpos", "qpos"),
    ACTION: ("actions", "action.joints", "target_action"),
}
"""Other names for state and action that are met in the wild."""


class _Lenient(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class Feature(_Lenient):
    """One column or camera of a data set."""

    dtype: str
    shape: tuple[int, ...] = ()
    names: Any = None

    @property
    def flat_names(self) -> tuple[str, ...]:
        """Names per dimension, also from the older `{"motors": [...]}`; empty where there are none."""
        names = self.names
        if isinstance(names, dict):
            names = [n for group in names.values() for n in (group if isinstance(group, list) else [group])]
        return tuple(map(str, names)) if isinstance(names, list) else ()


class DatasetInfo(_Lenient):
    """What a data set says about itself; whether it is true is for the check."""

    codebase_version: str
    fps: float = Field(gt=0, le=10_000)
    features: dict[str, Feature]
    total_episodes: int | None = None
    total_frames: int | None = None
    chunks_size: int = Field(default=1000, gt=0)
    data_path: str | None = None
    video_path: str | None = None
    robot_type: str | None = None

    @property
    def is_v3(self) -> bool:
        """Whether files hold many episodes (v3.x) rather than one each (v2.x)."""
        return self.codebase_version.startswith("v3")

    @property
    def cameras(self) -> tuple[str, ...]:
        """Feature keys of all cameras, sorted."""
        return tuple(sorted(k for k, f in self.features.items() if f.dtype in ("video", "image")))

    @property
    def video_keys(self) -> tuple[str, ...]:
        """Feature keys of the cameras that are stored as video, sorted."""
        return tuple(sorted(k for k, f in self.features.items() if f.dtype == "video"))

    @property
    def image_keys(self) -> tuple[str, ...]:
        """Feature keys of the cameras that are stored as pictures in parquet, sorted."""
        return tuple(sorted(k for k, f in self.features.items() if f.dtype == "image"))


def camera_name(key: str) -> str:
    """A camera's feature key without its prefix.

    >>> camera_name("observation.images.wrist")
    'wrist'
    """
    return key.removeprefix(CAMERA_PREFIX)


def resolve_renames(info: DatasetInfo, given: Mapping[str, str]) -> dict[str, str]:
    """Feature key in the data set -> its proper key: those given, and those that have one obvious meaning.

    Obvious are other common names of state and action, and cameras without `observation.images.` in front.
    """
    renames = {old: new for old, new in given.items() if old in info.features}
    for key, others in ALIASES.items():
        found = [o for o in others if o in info.features]
        if key not in info.features and key not in renames.values() and len(found) == 1:
            renames[found[0]] = key
    for key in info.cameras:
        if not key.startswith(CAMERA_PREFIX) and key not in renames:
            name = key.removeprefix("observation.image.").removeprefix("observation.").removeprefix("images.")
            renames[key] = CAMERA_PREFIX + name
    return renames


def read_info(folder: Folder) -> DatasetInfo:
    """What the data set says about itself.

    Raises:
        BrokenFile: the file is missing, not JSON, or lacks what every LeRobot data set states.
    """
    raw = folder.json(INFO_PATH)
    try:
        return DatasetInfo.model_validate(raw)
    except ValidationError as e:
        first = e.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the whole file"
        raise BrokenFile(f"{INFO_PATH} {place}", repr(first["input"])[:80], first["msg"]) from e

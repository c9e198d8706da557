"""`meta/info.json` of a LeRobot dataset (v2.0 to v3.0), and the constants of the format.

The file declares the features (columns and cameras), the frame rate and the path templates. The reader is lenient: the
check reports what is wrong with the values.
"""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from zk0.data.dataset_folder import BrokenFile, DatasetFolder
from zk0.records import ACTION, CAMERA_PREFIX, STATE

INFO_PATH = "meta/info.json"
TOLERANCE_SECONDS = 1e-4
"""Largest difference between a frame's timestamp and its video frame's; LeRobot's default `tolerance_s`."""
DEFAULT_FEATURES = {
    "timestamp": "float32",
    "frame_index": "int64",
    "episode_index": "int64",
    "index": "int64",
    "task_index": "int64",
}
"""The columns that LeRobot adds to every dataset -> their dtype."""
ALIASES = {
    STATE: ("state", "observation.joint_positions", "observation.joints", "observation.qpos", "qpos"),
    ACTION: ("actions", "action.joints", "target_action"),
}
"""Other feature keys for state and action that public datasets use."""


class _LenientModel(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class Feature(_LenientModel):
    """One column or camera of a dataset, as meta/info.json declares it."""

    dtype: str
    shape: tuple[int, ...] = ()
    names: Any = None
    info: Any = None
    """Properties of a video."""

    @property
    def is_depth(self) -> bool:
        """Whether this is a depth camera, which no policy for color images can use."""
        stated = self.info if isinstance(self.info, dict) else {}
        return bool(stated.get("video.is_depth_map") or stated.get("is_depth_map"))

    @property
    def flat_names(self) -> tuple[str, ...]:
        """Names of the dimensions, also from the older form `{"motors": [...]}`; empty if none are declared."""
        names = self.names
        if isinstance(names, dict):
            names = [n for group in names.values() for n in (group if isinstance(group, list) else [group])]
        return tuple(map(str, names)) if isinstance(names, list) else ()


class DatasetInfo(_LenientModel):
    """The content of meta/info.json. The values may be wrong: the check compares them with the files."""

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
        """Whether a file holds many episodes (v3.x) instead of one (v2.x)."""
        return self.codebase_version.startswith("v3")

    @property
    def cameras(self) -> tuple[str, ...]:
        """Feature keys of all color cameras, sorted."""
        return tuple(sorted(k for k, f in self.features.items() if f.dtype in ("video", "image") and not f.is_depth))

    @property
    def video_keys(self) -> tuple[str, ...]:
        """Feature keys of the cameras, depth cameras too, that are stored as video, sorted."""
        return tuple(sorted(k for k, f in self.features.items() if f.dtype == "video"))

    @property
    def image_keys(self) -> tuple[str, ...]:
        """Feature keys of the cameras that are stored as images in parquet, sorted."""
        return tuple(sorted(k for k, f in self.features.items() if f.dtype == "image"))


def camera_name(key: str) -> str:
    """Return the camera name: the feature key without `observation.images.`.

    >>> camera_name("observation.images.wrist")
    'wrist'
    """
    return key.removeprefix(CAMERA_PREFIX)


def resolve_renames(info: DatasetInfo, given: Mapping[str, str]) -> dict[str, str]:
    """Return feature key in the dataset -> canonical key: the given renames and the obvious ones.

    Obvious are the aliases of state and action (if exactly one is present), and cameras without the prefix
    `observation.images.`.
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


def read_dataset_info(folder: DatasetFolder) -> DatasetInfo:
    """Read meta/info.json.

    Raises:
        BrokenFile: the file is missing, not JSON, or lacks a required field.
    """
    raw = folder.read_json(INFO_PATH)
    try:
        return DatasetInfo.model_validate(raw)
    except ValidationError as e:
        first = e.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the whole file"
        raise BrokenFile(f"{INFO_PATH} {place}", repr(first["input"])[:80], first["msg"]) from e

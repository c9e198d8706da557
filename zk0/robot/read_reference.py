"""What a robot is compared with: the reference of a saved policy, or the recordings of the robot's owner."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError

from zk0.data.check import check_dataset
from zk0.data.check.contract_rules import known_units
from zk0.data.episode_reader import EpisodeReader
from zk0.data.robot_reference import camera_references, start_moments
from zk0.data.statistics import measure_statistics
from zk0.errors import DatasetError, PolicyError, first_line
from zk0.policy.published_config import locate_policy_file, read_published_config, resolve_policy_path
from zk0.records import CAMERA_PREFIX, JointUnits, RobotReference

ROBOT_FILE = "robot.json"
"""File of a saved policy with its `RobotReference`."""
_MAX_BYTES = 4_000_000


def policy_cameras(checkpoint: str) -> tuple[str, ...]:
    """Return the cameras whose pictures a saved policy takes, without `observation.images.`.

    Raises:
        PolicyError: config.json cannot be read, or names no camera.
        HubUnavailable: the Hub cannot be reached now.
    """
    features: Any = read_published_config(resolve_policy_path(checkpoint)).get("input_features")
    keys = features if isinstance(features, dict) else {}
    found = tuple(str(key).removeprefix(CAMERA_PREFIX) for key in keys if str(key).startswith(CAMERA_PREFIX))
    if not found:
        raise PolicyError(f"{checkpoint}: config.json names no camera, expected {CAMERA_PREFIX}... in input_features")
    return found


def read_policy_reference(checkpoint: str) -> RobotReference:
    """Return the reference that zk0 stores in the policies of a session.

    Raises:
        PolicyError: the policy has no robot.json, as those of other programs, or it cannot be read.
        HubUnavailable: the Hub cannot be reached now.
    """
    file = locate_policy_file(place := resolve_policy_path(checkpoint), ROBOT_FILE)
    if file is None:
        read_published_config(place)  # refuses a folder or name that is no policy at all
        raise PolicyError(
            f"{checkpoint}: no {ROBOT_FILE}, which policies of a session have; give recordings of your robot to "
            "compare with: --recordings DATASET"
        )
    try:
        if (size := file.stat().st_size) > _MAX_BYTES:
            raise PolicyError(f"{file}: {size} bytes, expected at most {_MAX_BYTES}")
        return RobotReference.model_validate_json(file.read_bytes())
    except (OSError, ValidationError) as e:
        raise PolicyError(f"{file}: not the reference of a robot ({first_line(e)}); save the policy again") from e


def recordings_reference(
    uri: str, root: Path, cameras: tuple[str, ...], renames: Mapping[str, str], units: JointUnits | None
) -> RobotReference:
    """Return the reference of a dataset: all its episodes.

    Args:
        uri: name of the dataset, for messages.
        root: its folder.
        cameras: those that the policy takes.
        renames: feature key in the dataset -> key of the policy.
        units: of state and action; None: those that the joint names or the values allow.

    Raises:
        DatasetError: the dataset is broken, its units are not known, or it lacks a camera.
    """
    report = check_dataset(root, dataset=uri, quick=True, rename_map=dict(renames))
    if report.errors or report.fps is None:
        raise DatasetError(
            f"{uri}: {'; '.join(map(str, report.errors)) or 'no frame rate'}; see `zk0 data check {uri}`"
        )
    found = known_units(report, units)
    if found is None or found == "ticks":
        raise DatasetError(
            f"{uri}: units {found or 'not known'}; state them with --units, if they are one of "
            f"{', '.join(get_args(JointUnits))} (LeRobot's -100..100)"
        )
    reader = EpisodeReader(root, renames)
    sources = [(reader, reader.episodes)]
    return RobotReference(
        cameras=camera_references(sources, cameras),
        joints=report.state_names,
        units=found,
        fps=report.fps,
        tasks=report.tasks,
        state=measure_statistics(root, reader.episodes, renames).state,
        start=start_moments(sources),
    )

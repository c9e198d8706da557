"""Closed-loop rollouts of a saved policy, whether zk0 or plain LeRobot trained it (`zk0 rollout`)."""

from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path

from zk0.errors import PolicyError
from zk0.evaluation.attempt_store import AttemptStore
from zk0.evaluation.closed_loop import PolicyActor, conditions_digest, run_attempts
from zk0.policy.saved_policy import SavedPolicy, load_saved_policy
from zk0.records import CAMERA_PREFIX, Rollout, RolloutSubject
from zk0.settings.dataset_settings import SimulatorSettings
from zk0.settings.evaluation_settings import RolloutSettings, VideoSettings
from zk0.simulator.tasks import CAMERAS
from zk0.training.device import pick_device


def roll_out_saved_policy(
    checkpoint: str,
    out: Path,
    settings: tuple[SimulatorSettings, RolloutSettings, VideoSettings],
    cameras: Mapping[str, str],
    when: datetime,
) -> Iterator[tuple[Rollout, ...]]:
    """Roll out a saved policy at one task after the other; yields the attempts' results of each task.

    Results and videos are stored in `out/<task>/`. Attempts that the same policy made before are read, not repeated.

    Args:
        checkpoint: a policy folder, a name on the Hub, or `base`.
        out: where a folder for each task is made.
        settings: of the simulator, the rollouts and the videos.
        cameras: camera of the simulator -> feature key of the policy, where the names differ.
        when: names the files.

    Raises:
        PolicyError: the policy cannot be loaded, or takes an image that no camera of the simulator is mapped to.
        SimulatorError: a task does not exist, images cannot be rendered, or actions are not finite.
    """
    simulator, rollout, video = settings
    saved = load_saved_policy(checkpoint, pick_device("auto"))
    actor = PolicyActor(saved.policy, saved.preprocessor, saved.postprocessor, map_cameras(saved, cameras, checkpoint))
    for task in rollout.tasks:
        conditions = conditions_digest(simulator, rollout)
        subject = RolloutSubject(round=None, checkpoint=saved.digest, task=task, conditions_digest=conditions)
        store = AttemptStore(out, out / task, subject)
        keep_dataset = rollout.keep_dataset and not store.dataset_folder.is_dir()
        if not keep_dataset and (finished := store.read_finished(rollout.seeds)) is not None:
            yield finished
            continue
        rendered = len(rollout.seeds) if keep_dataset else video.rollouts
        attempts = run_attempts(actor, task, simulator, rollout, rendered)
        if keep_dataset:
            store.store_dataset(attempts)
        yield store.store(attempts, video.rollouts, video.camera_height, when)


def map_cameras(saved: SavedPolicy, cameras: Mapping[str, str], checkpoint: str) -> dict[str, str]:
    """Camera of the simulator -> feature key, for every image that the policy takes.

    Args:
        saved: the policy.
        cameras: mappings that replace the default, `observation.images.<camera>`.
        checkpoint: the policy's path, for the error's message.

    Raises:
        PolicyError: the policy takes an image that no camera is mapped to.
    """
    mapping = {camera: f"{CAMERA_PREFIX}{camera}" for camera in CAMERAS} | dict(cameras)
    used = {camera: key for camera, key in mapping.items() if key in saved.cameras}
    if unmapped := sorted(set(saved.cameras) - set(used.values())):
        raise PolicyError(
            f"{checkpoint}: takes {', '.join(unmapped)}, which no camera of the simulator ({', '.join(CAMERAS)}) is "
            f"mapped to; map them, for example --camera {CAMERAS[0]}={unmapped[0]}"
        )
    return used

"""A saved policy, of zk0 or any other lerobot training, in closed loop with the simulator."""

from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path

from zk0.errors import PolicyError
from zk0.records import CAMERA_PREFIX, Rollout, RolloutSubject
from zk0.robot.checkpoint import SavedPolicy, load_saved
from zk0.session import RolloutSettings, SimulatorSettings, VideoSettings
from zk0.simulator.environment import CAMERAS
from zk0.training.attempts import Attempts
from zk0.training.closed_loop import Actor, attempt_task, conditions_of
from zk0.training.device import pick_device


def roll_out_saved(
    checkpoint: str,
    out: Path,
    settings: tuple[SimulatorSettings, RolloutSettings, VideoSettings],
    cameras: Mapping[str, str],
    when: datetime,
) -> Iterator[tuple[Rollout, ...]]:
    """The attempts at one task after the other; results and films lie in `out/<task>/`.

    `cameras` maps the simulator's cameras to the policy's feature keys where they are not named alike. Attempts that
    this very policy made before are not made again.

    Raises:
        PolicyError: the policy cannot be loaded, or sees through cameras that are mapped to none of the simulator's.
        SimulatorError: there is no such task, nothing can be rendered, or the policy's actions are not finite.
    """
    simulator, rollout, video = settings
    saved = load_saved(checkpoint, pick_device("auto"))
    actor = Actor(saved.policy, saved.preprocessor, saved.postprocessor, camera_map(saved, cameras, checkpoint))
    for task in rollout.tasks:
        conditions = conditions_of(simulator, rollout)
        subject = RolloutSubject(round=None, checkpoint=saved.digest, task=task, conditions=conditions)
        attempts = Attempts(out, out / task, subject)
        keep = rollout.keep_dataset and not attempts.dataset.is_dir()
        if not keep and (finished := attempts.finished(rollout.seeds)) is not None:
            yield finished
            continue
        made = attempt_task(actor, task, simulator, rollout, len(rollout.seeds) if keep else video.rollouts)
        if keep:
            attempts.keep_dataset(made)
        yield attempts.keep(made, video.rollouts, video.camera_height, when)


def camera_map(saved: SavedPolicy, cameras: Mapping[str, str], checkpoint: str) -> dict[str, str]:
    """Camera of the simulator -> feature key, for every camera that the policy sees through.

    Raises:
        PolicyError: a camera of the policy is left over.
    """
    named = {camera: f"{CAMERA_PREFIX}{camera}" for camera in CAMERAS} | dict(cameras)
    found = {camera: key for camera, key in named.items() if key in saved.cameras}
    if left := sorted(set(saved.cameras) - set(found.values())):
        raise PolicyError(
            f"{checkpoint}: sees through {', '.join(left)}, which none of the simulator's cameras "
            f"({', '.join(CAMERAS)}) is mapped to; say which: --camera {CAMERAS[0]}={left[0]}"
        )
    return found

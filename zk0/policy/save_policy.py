"""Save a policy as a complete LeRobot folder, which plain LeRobot and `zk0.policy.saved_policy` load."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from zk0.policy.kinds import kind_of
from zk0.policy.processors import make_processors
from zk0.records import Statistics
from zk0.storage.atomic import atomic_folder
from zk0.storage.sha256_sums import SUMS_FILE, sha256_of_folder, sums_text

STATISTICS_FOLDER = "statistics"
"""Subfolder with the pre- and postprocessors of the groups that are not the default (`zk0.records.StatisticsGroup`)."""

ExtraFiles = Callable[[Mapping[str, str]], Mapping[str, str]]
"""Returns further text files by name from the SHA-256 of each file of the policy by name."""


def save_policy(
    policy: Any,
    statistics: Statistics,
    folder: Path,
    extra_files: Mapping[str, str] | ExtraFiles | None = None,
    other_groups: Mapping[str, Statistics] | None = None,
    image_shapes: Mapping[str, tuple[int, int]] | None = None,
    executed_steps: int | None = None,
) -> None:
    """Write a complete LeRobot policy folder, with no absolute path in it. A failure leaves the old folder unchanged.

    The folder names no device: LeRobot chooses one where it loads the policy.

    The files of a vision-language model that is not on the Hub (`tiny`, `base`) are in config.json and in the
    preprocessor (`lerobot_policy_smolvla_bundled`).

    Args:
        policy: the policy, with the weights to save.
        statistics: written into the pre- and postprocessor.
        folder: replaced if it exists.
        extra_files: further text files by name (README.md, metrics.json), or a function that returns them from the
            SHA-256 of each other file. SHA256SUMS then lists all files.
        other_groups: further statistics by name; their pre- and postprocessors are written into `statistics/NAME`.
        image_shapes: height and width of the images of each camera, by feature key; None: as the policy declares them.
        executed_steps: actions of a chunk that LeRobot executes before it asks for the next one; None: as the policy
            declares them.

    Raises:
        DiskFull: the disk has no room for the folder.
    """
    others = other_groups or {}
    by_folder = {"": statistics, **{f"{STATISTICS_FOLDER}/{name}": found for name, found in others.items()}}
    processors = {where: make_processors(policy, found) for where, found in by_folder.items()}
    with atomic_folder(folder, SafetensorError, existing="replace") as temporary:
        with _portable(policy, image_shapes or {}, executed_steps):
            policy.save_pretrained(temporary)
        for where, pair in processors.items():
            for processor in pair:
                _name_no_device(processor)
                processor.save_pretrained(temporary / where)
        extra = extra_files(sha256_of_folder(temporary)) if callable(extra_files) else extra_files or {}
        for name, text in extra.items():
            (temporary / name).write_text(text, encoding="utf-8")
        (temporary / SUMS_FILE).write_text(sums_text(sha256_of_folder(temporary)), encoding="utf-8")


@contextmanager
def _portable(policy: Any, image_shapes: Mapping[str, tuple[int, int]], executed_steps: int | None) -> Iterator[None]:
    """Inside the block the configuration has no device, these shapes of images, and so many executed steps."""
    from lerobot.configs import FeatureType, PolicyFeature

    config = policy.config
    device, features, steps = config.device, config.input_features, config.n_action_steps
    config.device = None
    if getattr(config, "temporal_ensemble_coeff", None) is None:  # with it, LeRobot takes 1 only
        config.n_action_steps = min(executed_steps or steps, kind_of(policy).predicted_actions(policy))
    config.input_features = features | {
        key: PolicyFeature(FeatureType.VISUAL, (3, *shape)) for key, shape in image_shapes.items() if key in features
    }
    try:
        yield
    finally:
        config.device, config.input_features, config.n_action_steps = device, features, steps


def _name_no_device(processor: Any) -> None:
    """Let the processor leave its output on the CPU, as it does by default; LeRobot's commands set the device."""
    from lerobot.processor import DeviceProcessorStep

    for step in processor.steps:
        if isinstance(step, DeviceProcessorStep):
            step.device = "cpu"

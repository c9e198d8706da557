"""SmolVLA's processors with a tokenizer that the preprocessor's own file holds."""

from dataclasses import dataclass, field
from typing import Any

from lerobot.policies.smolvla.processor_smolvla import make_smolvla_pre_post_processors
from lerobot.processor import ProcessorStepRegistry, TokenizerProcessorStep
from torch import Tensor

from lerobot_policy_smolvla_bundled.configuration_smolvla_bundled import BundledSmolVLAConfig
from lerobot_policy_smolvla_bundled.vlm_files import unpacked


@dataclass
@ProcessorStepRegistry.register(name="bundled_tokenizer_processor")
class BundledTokenizerProcessorStep(TokenizerProcessorStep):
    """LeRobot's tokenizer step, which loads its tokenizer from files that it carries.

    Raises:
        ValueError: the files cannot be those of a vision-language model.
    """

    vlm_files: dict[str, str] = field(default_factory=dict)
    """Texts by file name, as in the policy's configuration."""

    def __post_init__(self) -> None:
        with unpacked(self.vlm_files, "vlm_files of the tokenizer step") as folder:
            self.tokenizer_name: str | None = folder
            super().__post_init__()
        self.tokenizer_name = None

    def get_config(self) -> dict[str, Any]:
        """Return what the step is built from again."""
        return super().get_config() | {"vlm_files": self.vlm_files}


def make_smolvla_bundled_pre_post_processors(
    config: BundledSmolVLAConfig, dataset_stats: dict[str, dict[str, Tensor]] | None = None
) -> tuple[Any, Any]:
    """Return SmolVLA's preprocessor and postprocessor with the tokenizer of the configuration's files."""
    with config.vlm_unpacked():
        pre, post = make_smolvla_pre_post_processors(config, dataset_stats)
    pre.steps = [_bundled_step(step, config.vlm_files) for step in pre.steps]
    return pre, post


def _bundled_step(step: Any, files: dict[str, str]) -> Any:
    """Return the step, or in place of the tokenizer step one that carries its tokenizer."""
    if not isinstance(step, TokenizerProcessorStep):
        return step
    settings = step.get_config()
    del settings["tokenizer_name"]
    return BundledTokenizerProcessorStep(**settings, vlm_files=files)

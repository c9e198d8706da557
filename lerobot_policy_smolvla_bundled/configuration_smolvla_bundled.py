"""Configuration of a SmolVLA that carries the configuration and the tokenizer of its vision-language model."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path

from lerobot.configs import PreTrainedConfig
from lerobot.policies.smolvla.configuration_smolvla import SmolVLAConfig

from lerobot_policy_smolvla_bundled.vlm_files import read_vlm_files, unpacked


@PreTrainedConfig.register_subclass("smolvla_bundled")
@dataclass
class BundledSmolVLAConfig(SmolVLAConfig):
    """SmolVLA's configuration with the files of its vision-language model."""

    vlm_model_name: str = "see vlm_files"
    vlm_files: dict[str, str] = field(default_factory=dict)
    """Texts by file name: config.json, tokenizer.json and what else transformers needs. The weights are not here: the
    policy's own file holds them."""

    @contextmanager
    def vlm_unpacked(self) -> Iterator[None]:
        """Inside the block `vlm_model_name` is a folder with the files.

        Raises:
            ValueError: the files cannot be those of a vision-language model.
        """
        name = self.vlm_model_name
        with unpacked(self.vlm_files, "vlm_files of config.json") as folder:
            self.vlm_model_name = folder
            try:
                yield
            finally:
                self.vlm_model_name = name


def bundled(config: SmolVLAConfig, folder: Path) -> BundledSmolVLAConfig:
    """Return a copy of a configuration that carries the files of the vision-language model in a folder.

    Raises:
        ValueError: the folder lacks a file, or the files are too large.
    """
    same = {f.name: getattr(config, f.name) for f in fields(config) if f.init and f.name != "vlm_model_name"}
    return BundledSmolVLAConfig(**same | {"vlm_files": read_vlm_files(folder)})

"""SmolVLA built from the files that its configuration carries."""

from typing import Any

from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy

from lerobot_policy_smolvla_bundled.configuration_smolvla_bundled import BundledSmolVLAConfig


class BundledSmolVLAPolicy(SmolVLAPolicy):
    """SmolVLA that needs no folder and no Hub for its vision-language model; everything else is LeRobot's.

    Raises:
        ValueError: the configuration's files cannot be those of a vision-language model, or it asks for other weights
            than those of the policy's own file.
    """

    config_class = BundledSmolVLAConfig
    name = "smolvla_bundled"

    def __init__(self, config: BundledSmolVLAConfig, **kwargs: Any) -> None:
        if config.load_vlm_weights:
            raise ValueError("load_vlm_weights is true, expected false: the policy's own file holds these weights")
        with config.vlm_unpacked():
            super().__init__(config, **kwargs)

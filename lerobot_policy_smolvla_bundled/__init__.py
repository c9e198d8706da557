"""LeRobot plugin with the policy type `smolvla_bundled`: SmolVLA with an own vision-language model.

LeRobot's commands import every distribution whose name begins with `lerobot_policy_`, which registers the type.
"""

from lerobot_policy_smolvla_bundled.configuration_smolvla_bundled import BundledSmolVLAConfig
from lerobot_policy_smolvla_bundled.modeling_smolvla_bundled import BundledSmolVLAPolicy
from lerobot_policy_smolvla_bundled.processor_smolvla_bundled import BundledTokenizerProcessorStep
from lerobot_policy_smolvla_bundled.vlm_files import read_vlm_files

__all__ = ["BundledSmolVLAConfig", "BundledSmolVLAPolicy", "BundledTokenizerProcessorStep", "read_vlm_files"]

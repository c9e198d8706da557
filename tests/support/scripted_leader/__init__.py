"""A leader arm of LeRobot, type `so101_scripted`, whose shoulder turns further with every reading."""

import logging
from dataclasses import dataclass
from typing import Any

from lerobot.teleoperators import Teleoperator, TeleoperatorConfig

from zk0.settings.dataset_settings import SO101_JOINTS

DEGREES_PER_READING = 2.0
START = dict(zip(SO101_JOINTS, (0.0, -60.0, 60.0, 60.0, 0.0, 50.0), strict=True))


@TeleoperatorConfig.register_subclass("so101_scripted")
@dataclass(kw_only=True)
class ScriptedLeaderConfig(TeleoperatorConfig):
    """The port, which every leader arm has."""

    port: str


class ScriptedLeader(Teleoperator):
    """It reads positions without motors, so LeRobot moves the follower to it before a correction."""

    config_class = ScriptedLeaderConfig
    name = "so101_scripted"
    action_features = dict.fromkeys(SO101_JOINTS, float)
    feedback_features: dict[str, type] = {}
    is_connected = False
    is_calibrated = True

    def __init__(self, config: ScriptedLeaderConfig) -> None:
        super().__init__(config)
        self._readings = 0

    def connect(self, calibrate: bool = True) -> None:
        """Begin the script."""
        self.is_connected = True

    def calibrate(self) -> None:
        """Do nothing."""

    def configure(self) -> None:
        """Do nothing."""

    def get_action(self) -> dict[str, float]:
        """Return the next pose."""
        self._readings += 1
        logging.info("scripted leader: reading %d", self._readings)
        return START | {SO101_JOINTS[0]: DEGREES_PER_READING * self._readings}

    def send_feedback(self, feedback: dict[str, Any]) -> None:
        """Do nothing."""

    def disconnect(self) -> None:
        """End the script."""
        self.is_connected = False

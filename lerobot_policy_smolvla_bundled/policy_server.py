"""LeRobot's asynchronous policy server, which also serves policies of type `smolvla_bundled`.

    python -m lerobot_policy_smolvla_bundled.policy_server --host=127.0.0.1 --port=8080 --fps=10

The options and the client (`python -m lerobot.async_inference.robot_client`) are LeRobot's. Its server serves only the
types of a list and imports no plugins.
"""

from lerobot.async_inference.constants import SUPPORTED_POLICIES
from lerobot.async_inference.policy_server import serve

from lerobot_policy_smolvla_bundled.configuration_smolvla_bundled import BundledSmolVLAConfig


def allow_bundled_policies() -> None:
    """Add the type to the list of those that LeRobot's server serves."""
    kind = BundledSmolVLAConfig.get_choice_name(BundledSmolVLAConfig)
    if kind not in SUPPORTED_POLICIES:
        SUPPORTED_POLICIES.append(kind)


def serve_policies() -> None:
    """Run LeRobot's policy server with the options of the command line until it is stopped."""
    allow_bundled_policies()
    serve()


if __name__ == "__main__":
    serve_policies()

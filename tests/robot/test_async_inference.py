"""LeRobot's asynchronous inference with a policy of type `smolvla_bundled` and the simulated arm."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from waiting import wait_until

from zk0.federation.network.flower_commands import free_port
from zk0.policy.published_config import BASE_POLICY_FOLDER

ACTIONS = 6


def test_lerobots_server_allows_the_type_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # LeRobot's server writes logs into the working directory
    from lerobot.async_inference.constants import SUPPORTED_POLICIES

    from lerobot_policy_smolvla_bundled.policy_server import allow_bundled_policies

    allow_bundled_policies()
    allow_bundled_policies()
    assert SUPPORTED_POLICIES.count("smolvla_bundled") == 1
    assert "smolvla" in SUPPORTED_POLICIES


@pytest.fixture
def server_port(tmp_path: Path) -> Iterator[int]:
    """The port of a running server, in another directory."""
    port = free_port()
    command = [sys.executable, "-m", "lerobot_policy_smolvla_bundled.policy_server", "--host=127.0.0.1"]
    with (tmp_path / "server.log").open("w") as log:
        server = subprocess.Popen([*command, f"--port={port}", "--fps=10"], stdout=log, stderr=log, cwd=tmp_path)
        try:
            yield port
        finally:
            server.kill()
            server.wait()


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("images")
def test_the_server_sends_actions_to_the_simulated_arm(
    server_port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # LeRobot's client writes logs into the working directory
    from lerobot.async_inference.configs import RobotClientConfig
    from lerobot.async_inference.robot_client import RobotClient

    from zk0.simulator.lerobot_robot import SimulatedFollowerConfig

    config = RobotClientConfig(
        robot=SimulatedFollowerConfig(id="sim", calibration_dir=tmp_path),
        server_address=f"127.0.0.1:{server_port}",
        policy_type="smolvla_bundled",
        pretrained_name_or_path=str(BASE_POLICY_FOLDER),
        actions_per_chunk=10,
        task="Pick up the red cube",
        fps=10,
    )
    client: Any = RobotClient(config)
    before = client.robot.get_observation()
    wait_until(client.start, 400)
    receiver = threading.Thread(target=client.receive_actions, daemon=True)
    receiver.start()
    watcher = threading.Thread(target=_stop_after_actions, args=(client,), daemon=True)
    watcher.start()
    client.control_loop(config.task)  # in this thread, to which the renderer belongs
    after = client.robot.get_observation()
    receiver.join(timeout=30)
    client.robot.disconnect()
    client.channel.close()
    assert client.latest_action >= ACTIONS
    moved = [joint for joint in client.robot.action_features if abs(after[joint] - before[joint]) > 1]
    assert moved


def _stop_after_actions(client: Any) -> None:
    try:
        wait_until(lambda: client.latest_action >= ACTIONS, 200)
    finally:
        client.shutdown_event.set()

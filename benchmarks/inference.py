"""Measure how evenly actions reach a robot with LeRobot's synchronous, real-time-chunking and asynchronous inference.

    python benchmarks/inference.py [--policy FOLDER] [--seconds 20] [--fps 10] [--modes sync,rtc,async] [--json FILE]

The robot shows random pictures, does nothing, and notes when each action arrives, so that only inference is measured.
Every mode runs LeRobot's own command in a process of its own.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from lerobot.robots import Robot
from lerobot.robots.config import RobotConfig

from zk0.policy.published_config import BASE_POLICY_FOLDER
from zk0.settings.dataset_settings import SO101_JOINTS
from zk0.simulator.tasks import CAMERAS

MODES = ("sync", "rtc", "async")
TASK = "Pick up the red cube"
SIZE = 96


@RobotConfig.register_subclass("so101_still")
@dataclass(kw_only=True)
class StillFollowerConfig(RobotConfig):
    """Settings of the robot that does nothing."""

    times: str = ""
    """File for the times of the actions, in seconds."""


class StillFollower(Robot):
    """A robot that shows random pictures and notes when actions arrive."""

    config_class = StillFollowerConfig
    name = "so101_still"
    is_calibrated = True
    is_connected = False
    action_features = dict.fromkeys(SO101_JOINTS, float)
    observation_features = action_features | dict.fromkeys(CAMERAS, (SIZE, SIZE, 3))

    def __init__(self, config: StillFollowerConfig) -> None:
        super().__init__(config)
        self.config, self.times = config, list[float]()
        self._random = np.random.default_rng(0)

    def connect(self, calibrate: bool = True) -> None:
        """Do nothing."""
        self.is_connected = True

    def calibrate(self) -> None:
        """Do nothing."""

    def configure(self) -> None:
        """Do nothing."""

    def get_observation(self) -> dict[str, Any]:
        """Return a pose that drifts, so that LeRobot's server does not skip it, and random pictures."""
        pose = dict.fromkeys(SO101_JOINTS, float(len(self.times)))
        return pose | {c: self._random.integers(0, 255, (SIZE, SIZE, 3), dtype=np.uint8) for c in CAMERAS}

    def send_action(self, action: dict[str, Any]) -> dict[str, Any]:
        """Note the time."""
        self.times.append(time.perf_counter())
        return action

    def disconnect(self) -> None:
        """Write the times."""
        self.is_connected = False
        Path(self.config.times).write_text(json.dumps(self.times))


def run_mode(mode: str, arguments: argparse.Namespace) -> None:
    """Run one mode in this process; the robot writes its times."""
    if mode == "async":
        run_async(arguments)
        return
    from lerobot.scripts.lerobot_rollout import main

    sys.argv[1:] = [
        f"--policy.path={arguments.policy}", f"--inference.type={mode}", "--device=cpu", f"--task={TASK}",
        "--robot.type=so101_still", "--robot.id=still", f"--robot.times={arguments.times}", f"--fps={arguments.fps}",
        f"--duration={arguments.seconds}", "--return_to_initial_position=false", "--play_sounds=false",
    ]  # fmt: skip
    main()


def run_async(arguments: argparse.Namespace) -> None:
    """Start the server, and run LeRobot's client until the time is over."""
    from lerobot.async_inference.configs import RobotClientConfig
    from lerobot.async_inference.robot_client import RobotClient

    chunk = json.loads((Path(arguments.policy) / "config.json").read_text())["chunk_size"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-m", "lerobot_policy_smolvla_bundled.policy_server", "--host=127.0.0.1", f"--port={port}",
         f"--fps={arguments.fps}", "--inference_latency=0"]
    )  # fmt: skip
    try:
        client: Any = RobotClient(
            RobotClientConfig(
                robot=StillFollowerConfig(id="still", times=arguments.times), server_address=f"127.0.0.1:{port}",
                policy_type="smolvla_bundled", pretrained_name_or_path=arguments.policy, actions_per_chunk=chunk,
                task=TASK, fps=arguments.fps,
            )
        )  # fmt: skip
        while not client.start():
            time.sleep(1)
        threading.Thread(target=client.receive_actions, daemon=True).start()
        threading.Timer(arguments.seconds, client.shutdown_event.set).start()
        client.control_loop(TASK)
        client.stop()
    finally:
        server.kill()
        server.wait()


def measure(mode: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return actions per second and the intervals between actions, in ms; the first second is left out."""
    with tempfile.TemporaryDirectory() as folder:
        times = Path(folder) / "times.json"
        command = [sys.executable, str(Path(__file__).resolve()), "--mode", mode, "--times", str(times)]
        command += ["--policy", arguments.policy, "--seconds", str(arguments.seconds), "--fps", str(arguments.fps)]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{mode} failed:\n{done.stderr[-3000:]}")
        found = np.array(json.loads(times.read_text()))
    found = found[found >= found[0] + 1]
    intervals = 1000 * np.diff(found)
    return {
        "mode": mode,
        "actions": len(found),
        "actions_per_second": float((len(found) - 1) / (found[-1] - found[0])),
        "median_ms": float(np.median(intervals)),
        "p95_ms": float(np.percentile(intervals, 95)),
        "late_share": float((intervals > 1500 / arguments.fps).mean()),
    }


def table(rows: list[dict[str, Any]], arguments: argparse.Namespace) -> str:
    """Return the results as a Markdown table."""
    lines = [
        f"{arguments.fps} actions per second wanted, {arguments.seconds:g} s, {os.cpu_count()} CPU cores",
        "",
        "| inference | actions/s | median interval, ms | 95th percentile, ms | late by half an interval |",
        "|---|---:|---:|---:|---:|",
    ]
    for row in rows:
        times = f"{row['median_ms']:.0f} | {row['p95_ms']:.0f} | {100 * row['late_share']:.0f} %"
        lines.append(f"| {row['mode']} | {row['actions_per_second']:.1f} | {times} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", default=str(BASE_POLICY_FOLDER), help="policy folder")
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--fps", type=int, default=10)
    parser.add_argument("--modes", default=",".join(MODES))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--mode", choices=MODES, help=argparse.SUPPRESS)
    parser.add_argument("--times", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.mode:
        run_mode(arguments.mode, arguments)
        return
    rows = [measure(mode, arguments) for mode in arguments.modes.split(",")]
    sys.stdout.write(table(rows, arguments))
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()

"""Measure success through LeRobot's asynchronous server and with real-time chunking beside direct rollouts.

    python benchmarks/asynchronous.py [--policy base] [--task lift-green] [--seeds 9000-9009] [--delays 1,3]
        [--results FILE.jsonl]

All are tried in the same scenes. LeRobot's `PolicyServer` answers LeRobot's `RobotClient` over loopback; the robot is
zk0's simulated arm. Real-time chunking is LeRobot's, too: its policy and its `ActionQueue`. Its horizon and guidance
are lower than LeRobot's defaults (10 and 10), which are for longer chunks and more denoising steps than `base` has.
The clock is simulated: a chunk arrives so many steps of the control loop after its observation, however long that took
on this machine, so that results do not depend on its load. The steps are those of `RobotClient.control_loop` and of
`RTCInferenceEngine`.

The time of a synchronous attempt is that of its actions and, before each chunk, of the same delay. Finished
attempts are read from the file of results and not repeated.
"""

import argparse
import json
import logging
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from queue import Queue
from statistics import mean
from typing import Any

import torch

from flows.cli.rollout_command import executed_steps, parse_seeds
from zk0.evaluation.closed_loop import PolicyActor
from zk0.evaluation.saved_rollout import map_cameras
from zk0.policy.published_config import resolve_policy_path
from zk0.policy.saved_policy import load_saved_policy
from zk0.settings.dataset_settings import SimulatorSettings
from zk0.simulator.arm import Observation, SimulatedArm
from zk0.simulator.rollout import open_arms, simulate_attempts
from zk0.simulator.tasks import FPS, find_task
from zk0.stats.intervals import wilson_interval

MAX_STEPS = 60
QUEUED_ACTIONS = 30
"""LeRobot's engine of real-time chunking begins a chunk when at most so many actions are left (`queue_threshold`)."""
_RESULT = re.compile(r"seed (\d+): (no )?success after (\d+) actions")


class Outcomes(logging.Handler):
    """The results that the simulated arm logs."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.found: dict[int, tuple[bool, int]] = {}

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the result of an attempt: success and actions by seed."""
        if match := _RESULT.search(record.getMessage()):
            self.found[int(match[1])] = (match[2] is None, int(match[3]))


class SteppedClient:
    """LeRobot's client, whose control loop and server advance in steps of simulated time.

    Args:
        server: LeRobot's servicer, in this process.
        address: where it listens.
        arguments: of the command line.
        delay: steps from an observation to its actions.
        seed: of the robot's first attempt.
    """

    def __init__(self, server: Any, address: str, arguments: argparse.Namespace, delay: int, seed: int) -> None:
        from lerobot.async_inference.configs import RobotClientConfig
        from lerobot.async_inference.robot_client import RobotClient

        from zk0.simulator.lerobot_robot import SimulatedFollowerConfig

        place = str(resolve_policy_path(arguments.policy))
        config = json.loads((Path(place) / "config.json").read_text())
        robot = SimulatedFollowerConfig(
            id="sim", calibration_dir=Path.cwd(), task=arguments.task, seed=seed, max_steps=MAX_STEPS
        )
        self.client: Any = RobotClient(
            RobotClientConfig(
                robot=robot, server_address=address, policy_type=config["type"], pretrained_name_or_path=place,
                actions_per_chunk=config["chunk_size"], task=find_task(arguments.task).text, fps=FPS,
            )
        )  # fmt: skip
        if not self.client.start():
            raise SystemExit("LeRobot's server does not answer; see the log above")
        self.server, self.delay = server, delay

    def attempt(self, seed: int, outcomes: Outcomes) -> dict[str, Any]:
        """Run the robot's attempt of this seed; return what it came to."""
        from lerobot.transport import services_pb2

        torch.manual_seed(seed)
        client = self.client
        client.stub.Ready(services_pb2.Empty())  # LeRobot's own reset of the server
        client.action_queue, client.latest_action = Queue(), -1
        client.must_go.set()
        waiting: tuple[int, Any] | None = None
        step = idle = chunks = 0
        outcomes.found.pop(seed, None)
        while seed not in outcomes.found:
            if waiting and waiting[0] <= step:
                self._take(waiting[1])
                waiting = None
            if client.actions_available():
                client.control_loop_action()
            else:
                idle += 1
            if seed not in outcomes.found and client._ready_to_send_observation():
                client.control_loop_observation(client.config.task)
            if waiting is None and not self.server.observation_queue.empty():
                waiting, chunks = (step + self.delay, client.stub.GetActions(services_pb2.Empty())), chunks + 1
            step += 1
            if step > MAX_STEPS * (2 + self.delay):
                raise SystemExit(f"seed {seed}: no end after {step} steps; LeRobot's log says why")
        success, actions = outcomes.found[seed]
        return {"success": success, "actions": actions, "idle_steps": idle, "chunks": chunks}

    def _take(self, reply: Any) -> None:
        """Put the actions of a reply into the queue, as `RobotClient.receive_actions` does."""
        import pickle

        if not reply.data:
            raise SystemExit("LeRobot's server failed to predict; its log says why")
        actions = pickle.loads(reply.data)  # from the server in this process
        self.client.action_chunk_size = max(self.client.action_chunk_size, len(actions))
        self.client._aggregate_action_queues(actions, self.client.config.aggregate_fn)
        self.client.must_go.set()


class SteppedChunking:
    """LeRobot's real-time chunking, whose control loop and inference advance in steps of simulated time."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        from lerobot.policies.rtc.configuration_rtc import RTCConfig

        saved = load_saved_policy(arguments.policy, "cpu")
        self.config = saved.policy.config.rtc_config = RTCConfig(
            execution_horizon=arguments.horizon, max_guidance_weight=arguments.guidance
        )
        saved.policy.init_rtc_processor()
        cameras = map_cameras(saved, {}, arguments.policy)
        self.actor = PolicyActor(saved.policy, saved.preprocessor, saved.postprocessor, cameras)
        self.task = arguments.task

    def attempt(self, seed: int, delay: int) -> dict[str, Any]:
        """Run the attempt of this seed; return what it came to.

        Args:
            seed: of scene and noise.
            delay: steps from an observation to its actions.
        """
        from lerobot.policies.rtc.action_queue import ActionQueue

        torch.manual_seed(seed)
        queue: Any = ActionQueue(self.config)
        waiting: tuple[int, int, Any] | None = None
        step = actions = chunks = 0
        success = False
        with SimulatedArm(self.task, SimulatorSettings(), render=True) as arm:
            seen = arm.reset(seed)
            while actions < MAX_STEPS and not success:
                if waiting and waiting[0] <= step:
                    queue.merge(*waiting[2], delay, waiting[1])
                    waiting = None
                if waiting is None and queue.qsize() <= QUEUED_ACTIONS:
                    index, chunk = queue.get_action_index(), self._predict(seen, queue, delay if chunks else 0)
                    waiting, chunks = (step + delay, index, chunk), chunks + 1
                if (action := queue.get()) is not None:
                    done = arm.step(action.numpy(), render=True)
                    seen, success, actions = done.observation, done.success, actions + 1
                step += 1
        return {"success": success, "actions": actions, "idle_steps": step - actions, "chunks": chunks}

    def _predict(self, seen: Observation, queue: Any, delay: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the next chunk (steps, joints), normalized and in the arm's units."""
        from lerobot.rollout.inference.rtc import _normalize_prev_actions_length

        if (left := queue.get_left_over()) is not None:
            left = _normalize_prev_actions_length(left, self.config.execution_horizon)
        batch = self.actor._batch([[seen]])
        with torch.no_grad():
            chunk = self.actor.policy.predict_action_chunk(batch, inference_delay=delay, prev_chunk_left_over=left)
        return chunk.squeeze(0).clone(), self.actor.postprocessor(chunk).squeeze(0).float()


@contextmanager
def running_server() -> Iterator[tuple[Any, str]]:
    """LeRobot's servicer behind gRPC on a free port of loopback, and its address."""
    import grpc
    from lerobot.async_inference.configs import PolicyServerConfig
    from lerobot.async_inference.policy_server import PolicyServer
    from lerobot.transport import services_pb2_grpc

    from lerobot_policy_smolvla_bundled.policy_server import allow_bundled_policies

    allow_bundled_policies()
    servicer = PolicyServer(PolicyServerConfig(host="127.0.0.1", fps=FPS, inference_latency=0))
    server = grpc.server(ThreadPoolExecutor(max_workers=4))
    services_pb2_grpc.add_AsyncInferenceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield servicer, f"127.0.0.1:{port}"
    finally:
        server.stop(None).wait()


def direct_attempts(arguments: argparse.Namespace) -> Any:
    """Return a function that runs the attempt of a seed as `zk0 rollout` does."""
    saved = load_saved_policy(arguments.policy, "cpu")
    actor = PolicyActor(saved.policy, saved.preprocessor, saved.postprocessor, map_cameras(saved, {}, arguments.policy))
    steps = executed_steps(arguments.policy)
    if steps is None:
        raise SystemExit(f"{arguments.policy}: config.json has no n_action_steps")

    def run(seed: int) -> dict[str, Any]:
        with open_arms([SimulatedArm(arguments.task, SimulatorSettings(), render=True)]) as arms:
            act = actor.act_function(steps)
            (found,) = simulate_attempts(arms, [seed], act, MAX_STEPS, (), actor.observed_steps)
        return {"success": found.success, "actions": found.steps, "idle_steps": 0, "chunks": len(found.chunks)}

    return run


def run_missing(arguments: argparse.Namespace, found: dict[tuple[str, int], dict[str, Any]]) -> None:
    """Run the attempts that are not among the results, seed by seed, and append each to the file."""
    seeds = parse_seeds(arguments.seeds)
    missing = [s for s in seeds if any((arm, s) not in found for arm in arms(arguments))]
    if not missing:
        return
    direct, chunking, outcomes = direct_attempts(arguments), SteppedChunking(arguments), Outcomes()
    with running_server() as (server, address):
        clients: dict[int, SteppedClient] = {}
        for seed in missing:
            if ("direct", seed) not in found:
                append(arguments, found, "direct", seed, direct(seed))
            for delay in arguments.delays:
                if (rtc_arm(arguments, delay), seed) not in found:
                    append(arguments, found, rtc_arm(arguments, delay), seed, chunking.attempt(seed, delay))
                arm = f"async-{delay}"
                if (arm, seed) in found:
                    continue
                if delay not in clients or clients[delay].client.robot._seed != seed:
                    if old := clients.pop(delay, None):
                        old.client.stop()
                    clients[delay] = SteppedClient(server, address, arguments, delay, seed)
                    logging.getLogger().addHandler(outcomes)  # LeRobot's client replaced all handlers
                append(arguments, found, arm, seed, clients[delay].attempt(seed, outcomes))
        for client in clients.values():
            client.client.stop()


def arms(arguments: argparse.Namespace) -> list[str]:
    """Names of what is compared."""
    of_delay = [(f"async-{delay}", rtc_arm(arguments, delay)) for delay in arguments.delays]
    return ["direct", *(arm for pair in of_delay for arm in pair)]


def rtc_arm(arguments: argparse.Namespace, delay: int) -> str:
    """Name of real-time chunking with this delay in the file of results."""
    return f"rtc-{arguments.horizon}-{arguments.guidance:g}-{delay}"


def append(
    arguments: argparse.Namespace, found: dict[tuple[str, int], Any], arm: str, seed: int, result: dict[str, Any]
) -> None:
    """Write one attempt behind the others."""
    found[arm, seed] = result
    with arguments.results.open("a") as file:
        file.write(json.dumps({"policy": arguments.policy, "task": arguments.task, "arm": arm, "seed": seed} | result))
        file.write("\n")


def read_results(arguments: argparse.Namespace) -> dict[tuple[str, int], dict[str, Any]]:
    """Return the finished attempts of this policy and task by arm and seed."""
    lines = arguments.results.read_text().splitlines() if arguments.results.exists() else []
    rows = map(json.loads, lines)
    wanted = (arguments.policy, arguments.task)
    return {(r["arm"], r["seed"]): r for r in rows if (r["policy"], r["task"]) == wanted}


def table(arguments: argparse.Namespace, found: dict[tuple[str, int], dict[str, Any]]) -> str:
    """Return success, simulated seconds to success and actions per second as a Markdown table."""
    seeds = parse_seeds(arguments.seeds)
    lines = [
        "| inference | delay of a chunk | success (95 % interval) | seconds to success | actions per second |",
        "|---|---:|---:|---:|---:|",
    ]
    for delay in arguments.delays:
        ways = {
            "synchronous": "direct",
            "asynchronous": f"async-{delay}",
            "real-time chunking": rtc_arm(arguments, delay),
        }
        everywhere = [s for s in seeds if all(found[arm, s]["success"] for arm in ways.values())]
        for name, arm in ways.items():
            rows = {s: found[arm, s] for s in seeds}
            wins = sum(r["success"] for r in rows.values())
            low, high = wilson_interval(wins, len(seeds))
            steps = {
                s: r["actions"] + (r["chunks"] * delay if arm == "direct" else r["idle_steps"]) for s, r in rows.items()
            }
            rate = FPS * sum(r["actions"] for r in rows.values()) / sum(steps.values())
            seconds = f"{mean(steps[s] for s in everywhere) / FPS:.1f}" if everywhere else ""
            success = f"{wins} of {len(seeds)} ({100 * low:.0f} to {100 * high:.0f} %)"
            lines.append(f"| {name} | {delay / FPS:g} s | {success} | {seconds} | {rate:.1f} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run what is missing, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", default="base")
    parser.add_argument("--task", default="lift-green")
    parser.add_argument("--seeds", default="9000-9009")
    parser.add_argument(
        "--delays", default="1,3", help=f"steps of 1/{FPS} s from an observation to its actions, each at least 1"
    )
    parser.add_argument("--horizon", type=int, default=5, help="execution_horizon of real-time chunking")
    parser.add_argument("--guidance", type=float, default=1.0, help="max_guidance_weight of real-time chunking")
    parser.add_argument("--results", type=Path, help="file of finished attempts; unset: nothing is kept")
    arguments = parser.parse_args()
    arguments.delays = [int(part) for part in arguments.delays.split(",")]
    kept = arguments.results.absolute() if arguments.results else None
    if min(arguments.delays) < 1:
        parser.error("--delays: each at least 1")
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        arguments.results = kept or Path(folder) / "results.jsonl"
        found = read_results(arguments)
        os.chdir(folder)  # LeRobot's client and server write logs into the working directory
        try:
            run_missing(arguments, found)
        finally:
            os.chdir(before)
    sys.stdout.write(table(arguments, found))


if __name__ == "__main__":
    main()

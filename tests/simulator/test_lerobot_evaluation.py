"""LeRobot's own evaluation on the simulated arm."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from zk0.settings.dataset_settings import SimulatorSettings
from zk0.settings.evaluation_settings import RolloutSettings
from zk0.simulator.arm import SimulatedArm
from zk0.simulator.expert import plan_trajectory

SEEDS = (9000, 9001, 9002, 9003)
pytestmark = pytest.mark.usefixtures("images")


def test_the_environment_is_the_simulated_arm() -> None:
    """The expert's actions give the same observations through Gymnasium as without it."""
    import gymnasium

    import zk0.simulator.gymnasium_env  # noqa: F401 -- registers the environments

    with SimulatedArm("lift-red", SimulatorSettings(image_size=64), render=True) as arm:
        first = arm.reset(4)
        actions = plan_trajectory(arm)
        expected = [first, *(arm.step(action).observation for action in actions)]
    env = gymnasium.make("zk0/lift-red-v0", image_size=64, max_episode_steps=60)
    found, info = env.reset(seed=4)
    assert info == {"is_success": False}
    ended, rewards = False, []
    for action, observation in zip(actions, expected, strict=False):
        assert env.observation_space.contains(found)
        np.testing.assert_array_equal(found["agent_pos"], observation.state)
        np.testing.assert_array_equal(found["pixels"]["wrist"], observation.images["wrist"])
        found, reward, ended, truncated, info = env.step(action)
        rewards.append(reward)
        assert not truncated
        if ended:
            break
    assert ended
    assert info == {"is_success": True}
    assert rewards == [0.0] * (len(rewards) - 1) + [1.0]
    image = env.render()
    assert np.shape(image) == (64, 128, 3)
    again, _ = env.reset()
    assert not np.array_equal(again["agent_pos"], found["agent_pos"])
    env.close()


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory, recordings: dict[str, Path], shared_cache: Path) -> Path:
    """A tiny policy's folder."""
    from zk0.data.statistics import measure_statistics
    from zk0.policy.build import build_policy
    from zk0.policy.save_policy import save_policy
    from zk0.records import PolicyRecipe

    policy: Any = build_policy(PolicyRecipe(path="tiny", cameras=("overhead", "wrist"), joints=6, seed=1), shared_cache)
    folder = tmp_path_factory.mktemp("saved") / "policy"
    save_policy(policy, measure_statistics(recordings["a"], (0, 1)), folder)
    return folder


def test_lerobots_rollout_runs_on_it(saved: Path, tmp_path: Path) -> None:
    from lerobot.envs import close_envs, make_env, make_env_pre_post_processors
    from lerobot.scripts.lerobot_eval import eval_policy

    from zk0.policy.saved_policy import load_saved_policy
    from zk0.simulator.lerobot_env import SimulatedSO101

    policy = load_saved_policy(str(saved))
    config = SimulatedSO101(task="stack-red-blue", episode_length=6)
    envs = make_env(config, n_envs=2)
    assert list(envs) == ["so101_sim"]
    before, after = make_env_pre_post_processors(config, policy.policy.config)
    result = eval_policy(
        envs["so101_sim"][0], policy.policy, before, after, policy.preprocessor, policy.postprocessor,
        n_episodes=2, max_episodes_rendered=1, videos_dir=tmp_path, start_seed=9000,
    )  # fmt: skip
    close_envs(envs)
    assert [(e["seed"], e["success"], e["sum_reward"]) for e in result["per_episode"]] == [
        (9000, False, 0.0),
        (9001, False, 0.0),
    ]
    assert [f.name for f in tmp_path.glob("*.mp4")] == ["eval_episode_0.mp4"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_lerobot_and_zk0_succeed_on_the_same_seeds() -> None:
    """Both start an attempt with the noise of its seed, so both execute the same actions: those of `zk0 rollout`."""
    from lerobot.envs import close_envs, make_env, make_env_pre_post_processors
    from lerobot.scripts.lerobot_eval import rollout

    from flows.cli.rollout_command import executed_steps
    from zk0.evaluation.closed_loop import PolicyActor, run_attempts
    from zk0.evaluation.saved_rollout import map_cameras
    from zk0.policy.saved_policy import load_saved_policy
    from zk0.simulator.lerobot_env import SimulatedSO101

    policy = load_saved_policy("base")
    processors = policy.preprocessor, policy.postprocessor
    settings = RolloutSettings(seeds=SEEDS, replan_steps=executed_steps("base") or 0, environments=1)
    actor = PolicyActor(policy.policy, *processors, map_cameras(policy, {}, "base"))
    attempts = run_attempts(actor, "lift-red", SimulatorSettings(), settings, rendered=0)
    config = SimulatedSO101(task="lift-red")
    envs = make_env(config, n_envs=1)
    around = make_env_pre_post_processors(config, policy.policy.config)
    for attempt in attempts:
        torch.manual_seed(attempt.seed)
        done = rollout(envs["so101_sim"][0], policy.policy, *around, *processors, seeds=[attempt.seed])
        np.testing.assert_allclose(done["action"][0].numpy(), attempt.actions, atol=0.1)
        assert bool(done["success"].any()) == attempt.success, attempt.seed
    close_envs(envs)
    assert any(attempt.success for attempt in attempts)


def lerobot_eval(policy: str, out: Path, **environment: str) -> dict[str, Any]:
    """Run LeRobot's command in a directory that is not the policy's folder; return what it has measured."""
    command = [str(Path(sys.executable).with_name("lerobot-eval")), "--env.type=so101_sim", "--env.task=lift-red"]
    command += ["--env.episode_length=5", f"--output_dir={out}"]
    command += [f"--policy.path={policy}", "--policy.device=cpu", "--eval.n_episodes=2", "--eval.batch_size=2"]
    variables = os.environ | environment
    done = subprocess.run(command, cwd=out.parent, env=variables, capture_output=True, text=True, timeout=840)
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads((out / "eval_info.json").read_text())
    return found


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_command_lerobot_eval(saved: Path, tmp_path: Path) -> None:
    assert lerobot_eval(str(saved), tmp_path / "out")["overall"]["pc_success"] == 0.0


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_command_lerobot_train(saved: Path, recordings: dict[str, Path], hub_server: Any, tmp_path: Path) -> None:
    """Fine-tuned by LeRobot and saved by it, the policy loads again, also by its name on the Hub, and then offline."""
    from zk0.policy.saved_policy import load_saved_policy

    command = [str(Path(sys.executable).with_name("lerobot-train")), f"--policy.path={saved}", "--policy.device=cpu"]
    command += ["--dataset.repo_id=lab/a", f"--dataset.root={recordings['a']}", "--policy.push_to_hub=false"]
    command += ["--steps=2", "--batch_size=2", "--num_workers=0", "--env_eval_freq=0", "--output_dir=out"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=840)
    assert done.returncode == 0, done.stderr[-3000:]
    moved = (tmp_path / "out/checkpoints/000002/pretrained_model").rename(tmp_path / "moved")
    before, after = load_saved_policy(str(saved)), load_saved_policy(str(moved))
    assert after.policy.config.vlm_files == before.policy.config.vlm_files
    weights = [policy.policy.model.action_out_proj.weight for policy in (before, after)]
    assert not weights[0].equal(weights[1])
    task = {"observation.state": weights[0].new_zeros(1, 6), "task": ["Lift the red cube."]}
    tokens = [policy.preprocessor(dict(task))["observation.language.tokens"] for policy in (before, after)]
    assert tokens[0].equal(tokens[1])
    hub_server.publish("lab/tuned", moved)
    hub = {"HF_ENDPOINT": hub_server.url, "HF_TOKEN": hub_server.token, "HF_HOME": str(tmp_path / "hf")}
    for number, (path, offline) in enumerate(((str(moved), "1"), ("lab/tuned", "0"), ("lab/tuned", "1"))):
        found = lerobot_eval(path, tmp_path / f"evaluated-{number}", **hub, HF_HUB_OFFLINE=offline)
        assert found["overall"]["n_episodes"] == 2

"""What the policy that ships can do: it finds a cube and lifts it."""

import pytest

from zk0.robot.checkpoint import load_saved
from zk0.session import RolloutSettings, SimulatorSettings
from zk0.simulator.rendering import choose_backend
from zk0.training.closed_loop import Actor, attempt_task
from zk0.training.saved import camera_map

SEEDS = (7001, 7002, 7003, 7005, 7006, 7008)


def test_it_lifts_green_cubes_that_it_has_not_seen_before() -> None:
    """All six of them where docs/benchmarks/learning.md was measured; other machines render differently."""
    if choose_backend(required=False) is None:
        pytest.skip("no OpenGL backend renders here")
    saved = load_saved("base")
    actor = Actor(saved.policy, saved.preprocessor, saved.postprocessor, camera_map(saved, {}, "base"))
    settings = RolloutSettings(seeds=SEEDS, max_steps=45, environments=2)
    made = attempt_task(actor, "lift-green", SimulatorSettings(), settings, filmed=0)
    assert sum(one.success for one in made) >= 4

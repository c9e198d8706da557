"""The policy `base` in closed loop: it finds a cube and lifts it."""

import pytest

from zk0.evaluation.closed_loop import PolicyActor, run_attempts
from zk0.evaluation.saved_rollout import map_cameras
from zk0.policy.saved_policy import load_saved_policy
from zk0.settings.dataset_settings import SimulatorSettings
from zk0.settings.evaluation_settings import RolloutSettings

SEEDS = (7001, 7002, 7003, 7005, 7006, 7008)


@pytest.mark.usefixtures("images")
def test_it_lifts_green_cubes_with_unseen_seeds() -> None:
    """It lifted all six on the machine of docs/benchmarks/learning.md; other machines render differently."""
    saved = load_saved_policy("base")
    actor = PolicyActor(saved.policy, saved.preprocessor, saved.postprocessor, map_cameras(saved, {}, "base"))
    settings = RolloutSettings(seeds=SEEDS, max_steps=45, environments=2)
    attempts = run_attempts(actor, "lift-green", SimulatorSettings(), settings, rendered=0)
    assert sum(attempt.success for attempt in attempts) >= 4

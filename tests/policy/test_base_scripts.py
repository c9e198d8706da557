"""The scripts that make the base policy: what they record, and that an interrupted training ends as any other."""

import sys
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from zk0.simulator.arm import Observation
from zk0.simulator.tasks import find_task

SCRIPTS = Path("scripts/base").resolve()
COLORS = SCRIPTS / "training_colors.toml"
SESSIONS = Path("deployments/sessions")


@pytest.fixture(scope="module", autouse=True)
def script_path() -> Iterator[None]:
    sys.path.insert(0, str(SCRIPTS))
    yield
    sys.path.remove(str(SCRIPTS))


class _Interrupted(Exception):
    """Ends a training as a signal would."""


def _train(file: Path, stop_after: int | None = None, steps: int = 30) -> list[float]:
    """Weights, and their averages, after training on random batches; `stop_after` raises after that many of them."""
    import resumable

    torch.manual_seed(5)
    layer = nn.Linear(3, 1)
    modules, conditions = nn.ModuleList([layer]), {"steps": steps}
    training = resumable.ResumableTraining(modules, file, conditions, [(list(layer.parameters()), 0.01)], steps, 3)
    made = 0

    def losses_of_batch() -> Tensor:
        nonlocal made
        if made == stop_after:
            raise _Interrupted
        made += 1
        return torch.stack([layer(torch.randn(4, 3)).pow(2).mean(), layer.weight.abs().sum()])

    def weights() -> list[float]:
        return torch.cat([p.flatten() for p in layer.parameters()]).tolist()

    training.run(losses_of_batch, 10, lambda: None)
    final = weights()
    with training.averaged_weights():
        averaged = weights()
    assert weights() == final
    assert averaged != final
    return final + averaged


def test_an_interrupted_training_ends_with_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import resumable

    expected = _train(tmp_path / "whole.pt")
    monkeypatch.setattr(resumable, "SAVE_SECONDS", 0)
    for stop in (7, 4, 1):
        with pytest.raises(_Interrupted):
            _train(tmp_path / "state.pt", stop)
    assert _train(tmp_path / "state.pt") == expected
    assert _train(tmp_path / "state.pt", 0) == expected, "nothing is left to do"


def test_a_state_of_another_training_is_refused(tmp_path: Path) -> None:
    _train(tmp_path / "state.pt")
    with pytest.raises(SystemExit, match=r"started with .*30.*expected .*31.*choose another --work"):
        _train(tmp_path / "state.pt", steps=31)


def test_no_client_trains_on_a_task_of_the_base_policy() -> None:
    from record_attempts import MOTIONS, allowed_tasks

    tasks = {task for motion in MOTIONS for task in allowed_tasks(COLORS, motion)}
    assert {"lift-black", "place-orange-red", "stack-black-yellow"} <= tasks
    assert not [task for task in tasks if find_task(task).cube in ("red", "yellow")]
    used = set()
    for file in SESSIONS.glob("*.toml"):
        clients = tomllib.loads(file.read_text(encoding="utf-8")).get("clients", [])
        used |= {client["dataset"].removeprefix("sim:") for client in clients}
    assert {"lift-red", "stack-red-blue"} <= used
    assert not tasks & used


def _stays(seeds: Sequence[int], observations: Sequence[Sequence[Observation]]) -> list[np.ndarray]:
    """A policy that does not move."""
    return [np.repeat(seen[-1].state[None], 5, axis=0) for seen in observations]


@pytest.fixture(scope="module")
def attempts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one file of attempts to stack."""
    import record_attempts

    folder = tmp_path_factory.mktemp("attempts")
    record_attempts.ATTEMPTS, usual = 3, record_attempts.ATTEMPTS
    try:
        told = record_attempts.record_file(folder / "00008.npz", 8, COLORS, _stays)
    finally:
        record_attempts.ATTEMPTS = usual
    assert "stack" in told
    return folder


@pytest.mark.usefixtures("images")
def test_a_frame_has_what_the_expert_would_do_there(attempts: Path) -> None:
    from record_attempts import CHUNK, FIRST_SEED

    with np.load(attempts / "00008.npz") as file:
        columns = dict(file)
    count = len(columns["task"])
    assert len(set(columns["attempt"].tolist())) == 3
    assert columns["attempt"].min() > FIRST_SEED
    assert columns["chunk"].shape == (count, CHUNK, 6)
    assert columns["overhead"].shape == columns["wrist"].shape == (count, 96, 96, 3)
    assert {find_task(str(task)).motion for task in columns["task"]} == {"stack"}
    moved = np.abs(columns["chunk"][:, 0] - columns["state"])[:, :5].max(1)
    assert np.median(moved) > 0.5, "the expert goes on where the policy stands still"
    assert moved.max() < 15


@pytest.mark.usefixtures("images")
def test_an_arm_shows_the_colors_of_the_attempts_task() -> None:
    from record_attempts import SIMULATOR, RecoloredArm

    with RecoloredArm("stack-green-red", SIMULATOR, render=True) as arm:
        images = []
        for task in ("stack-green-red", "stack-blue-red", "stack-green-red"):
            arm.begin(1_600_000_003, find_task(task))
            seen = arm.observe()
            assert seen.task == find_task(task).text
            images.append(seen.images["overhead"].astype(int))
    assert (np.abs(images[0] - images[1]).max(2) > 16).mean() > 0.001
    np.testing.assert_array_equal(images[0], images[2])


@pytest.mark.usefixtures("images")
def test_everything_is_trained_and_the_newest_policy_is_named(
    attempts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import train
    from record_attempts import named_policy

    from zk0.policy.saved_policy import load_saved_policy

    work, out = tmp_path / "work", tmp_path / "policy"
    assert named_policy(f"@{work / 'newest'}") == "base"
    monkeypatch.setattr(train, "SAVED_STEPS", 2)
    arguments = ["train.py", str(attempts), "--steps", "3", "--batch", "4", "--work", str(work), "--out", str(out)]
    monkeypatch.setattr(sys, "argv", arguments)
    train.main()
    torch.manual_seed(0)
    before, after = (dict(p.named_parameters()) for p in (train.build_policy(work), load_saved_policy(str(out)).policy))
    changed = {name for name, weight in before.items() if not torch.equal(weight, after[name])}
    for part in ("vision_model", "connector", "text_model", "lm_expert", "action_out_proj"):
        assert any(part in name for name in changed), part
    assert named_policy(f"@{work / 'newest'}") == str(work / "policy-3")
    output = capsys.readouterr().out
    assert "held out, averaged weights: loss of the actions" in output
    assert "goal, wrist" in output


def test_a_folder_without_frames_is_an_error(tmp_path: Path) -> None:
    from recorded_frames import RecordedFrames

    with pytest.raises(SystemExit, match=r"no frames; run scripts/base/record_attempts\.py first"):
        RecordedFrames(tmp_path, None, None)

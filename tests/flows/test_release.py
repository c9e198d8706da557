"""A release as the last stage of a session: refused with its reason, or agreed to in the UI and pushed."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from zk0.release import Release

pytestmark = pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds processes in /proc")
ASKED = {
    "rounds": 1,
    "training.lr": 2e-3,
    "simulator.episodes": 4,
    "data.holdout_episodes": 3,
    "evaluation.datasets": [{"dataset": "sim:lift-red", "last_episodes": 3}],
    "rollout.tasks": [],
    "publish.repo_id": "lab/arm",
    "publish.min_rounds": 1,
}


@pytest.fixture
def secret(stack: Any, hub_server: Any) -> Iterator[str]:
    """The token as the server's Secret block holds it."""
    from prefect.blocks.system import Secret
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with temporary_settings({PREFECT_API_URL: stack.api_url}):
        Secret(value=hub_server.token).save("hf-token", overwrite=True)
        yield hub_server.token
        Secret.delete("hf-token")


def folder_of(stack: Any, name: str) -> Path:
    (found,) = (stack.home / name).iterdir()
    return found


def test_the_reason_of_a_refusal_is_kept(stack: Any, finished: Any) -> None:
    assert finished.returncode == 0
    folder = folder_of(stack, "undisturbed")
    release = Release.read(folder / "release.json")
    assert release is not None
    assert release.outcome == "refused"
    assert release.reason.startswith("publish.repo_id is not set; 2 rounds ran, expected at least 20; ")
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "Release: not pushed: publish.repo_id is not set; 2 rounds ran" in page


def test_a_release_without_a_token_fails_before_anything_is_trained(stack: Any) -> None:
    run = stack.begin(stack.overrides("tokenless", **ASKED), HF_HUB_OFFLINE="0", HF_HOME=str(stack.home / "nobody"))
    state = stack.ended(run)
    assert state.is_failed()
    assert "no token for the Hub; expected HF_TOKEN" in state.message
    assert not list((stack.home / "tokenless").iterdir())


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_person_agrees_and_the_model_is_pushed(
    stack: Any, hub_server: Any, secret: str, wait_until: Callable[..., Any]
) -> None:
    overrides = stack.overrides("agreed", **ASKED, **{"publish.approval": True})
    run = stack.begin(overrides, HF_HUB_OFFLINE="0", HF_ENDPOINT=hub_server.url, HF_HUB_DISABLE_XET="1")
    wait_until(lambda: stack.state(run).is_paused() or stack.state(run).is_final())
    assert stack.state(run).name == "Suspended", stack.state(run).message
    folder = folder_of(stack, "agreed")
    assert Release.read(folder / "release.json").outcome == "allowed"
    assert (folder / "report.html").is_file(), "what is there to look at when one is asked"
    assert hub_server.requests == []
    with stack.client() as client:
        client.resume_flow_run(run, run_input={"approve": True, "note": "it grips"})
    assert stack.ended(run).is_completed(), stack.state(run).message

    release = Release.read(folder / "release.json")
    assert (release.outcome, release.revision) == ("pushed", f"{folder.name}_round_1")
    assert release.reason.endswith("; a person agreed (it grips)")
    repository = hub_server.repositories["lab/arm"]
    assert repository.private
    saved = folder / "models" / "checkpoint_round_1"
    wanted = {f.relative_to(saved).as_posix(): f.read_bytes() for f in saved.rglob("*") if f.is_file()}
    assert repository.files(release.revision) == wanted
    card = wanted["README.md"].decode()
    assert "Root of the session's ledger" in card
    assert str(stack.home) not in card + wanted["metrics.json"].decode()
    assert f"pushed to private lab/arm as {release.revision}" in (folder / "report.html").read_text(encoding="utf-8")
    for client in ("lifter", "placer"):
        log = (folder / "clients" / client / "client.log").read_text(encoding="utf-8")
        assert log.count("round 1 from") == 1, "trained again after the answer"
    with stack.client() as client:
        asked = client.read_flow_run(run)
    assert secret not in json.dumps(asked.parameters) + json.dumps(asked.job_variables)
    texts = [f for f in folder.rglob("*") if f.is_file() and secret.encode() in f.read_bytes()]
    assert texts == []

"""A release as the last stage of a session: refused with its reason, or approved in the UI and pushed."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from zk0.rules.release import Release

pytestmark = pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds processes in /proc")
RELEASE_SETTINGS = {
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
def hub_prefect(new_local_prefect: Any, hub_server: Any) -> Any:
    """A `zk0 ui` whose worker uses the fake Hub, with its token in a Secret block; a flow run cannot name the Hub."""
    from prefect.blocks.system import Secret

    new_local_prefect.environment |= {"HF_ENDPOINT": hub_server.url, "HF_HUB_DISABLE_XET": "1"}
    new_local_prefect.start()
    with new_local_prefect.settings():
        Secret(value=hub_server.token).save("hf-token", overwrite=True)
    return new_local_prefect


def folder_of(local_prefect: Any, name: str) -> Path:
    (found,) = (local_prefect.home / name).iterdir()
    return found


def test_the_reason_of_a_refusal_is_recorded(local_prefect: Any, finished: Any) -> None:
    assert finished.returncode == 0
    folder = folder_of(local_prefect, "uninterrupted")
    release = Release.read(folder / "release.json")
    assert release is not None
    assert release.outcome == "refused"
    assert release.reason.startswith("publish.repo_id is not set; 2 rounds ran, expected at least 20; ")
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "Release: not pushed: publish.repo_id is not set; 2 rounds ran" in page


def test_a_release_without_a_token_fails_before_anything_is_trained(local_prefect: Any) -> None:
    run = local_prefect.start_session(local_prefect.overrides("tokenless", **RELEASE_SETTINGS), HF_HUB_OFFLINE="0")
    state = local_prefect.final_state(run)
    assert state.is_failed()
    assert "no token for the Hub; expected HF_TOKEN" in state.message
    assert not list((local_prefect.home / "tokenless").iterdir())


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_person_approves_and_the_model_is_pushed(
    hub_prefect: Any, hub_server: Any, wait_until: Callable[..., Any]
) -> None:
    local_prefect, secret = hub_prefect, hub_server.token
    overrides = local_prefect.overrides("agreed", **RELEASE_SETTINGS, **{"publish.approval": True})
    run = local_prefect.start_session(overrides, HF_HUB_OFFLINE="0")
    wait_until(lambda: (state := local_prefect.state(run)).is_paused() or state.is_final(), pause=1)
    assert local_prefect.state(run).name == "Suspended", local_prefect.state(run).message
    folder = folder_of(local_prefect, "agreed")
    assert Release.read(folder / "release.json").outcome == "allowed"
    assert (folder / "report.html").is_file(), "the report exists when the person decides"
    assert hub_server.requests == []
    with local_prefect.client() as client:
        client.resume_flow_run(run, run_input={"approve": True, "note": "it grips"})
    assert local_prefect.final_state(run).is_completed(), local_prefect.state(run).message

    release = Release.read(folder / "release.json")
    assert (release.outcome, release.revision) == ("pushed", f"{folder.name}_round_1")
    assert release.reason.endswith("; a person approved (it grips)")
    repository = hub_server.repositories["lab/arm"]
    assert repository.private
    saved = folder / "models" / "checkpoint_round_1"
    wanted = {f.relative_to(saved).as_posix(): f.read_bytes() for f in saved.rglob("*") if f.is_file()}
    assert repository.files(release.revision) == wanted
    card = wanted["README.md"].decode()
    assert "Root of the session's ledger" in card
    assert str(local_prefect.home) not in card + wanted["metrics.json"].decode()
    assert f"pushed to private lab/arm as {release.revision}" in (folder / "report.html").read_text(encoding="utf-8")
    for client in ("lifter", "placer"):
        log = (folder / "clients" / client / "client.log").read_text(encoding="utf-8")
        assert log.count("round 1 from") == 1, "trained again after the approval"
    with local_prefect.client() as client:
        flow_run = client.read_flow_run(run)
    assert secret not in json.dumps(flow_run.parameters) + json.dumps(flow_run.job_variables)
    texts = [f for f in folder.rglob("*") if f.is_file() and secret.encode() in f.read_bytes()]
    assert texts == []

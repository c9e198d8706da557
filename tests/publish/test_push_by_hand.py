"""`zk0 push`: the release rule applies, unless a reason is given."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from flows.cli.main import zk0_app


def zk0_push(*arguments: object) -> Any:
    return CliRunner().invoke(zk0_app, ["push", *(str(a) for a in arguments)])


def test_the_last_checkpoint_of_a_session_is_pushed(hub: Any, finished_session: Any) -> None:
    here = finished_session("one")
    done = zk0_push(here.path)
    assert done.exit_code == 0, done.output
    assert f"to     {hub.url}/lab/arm/tree/one_round_20 (commit " in done.output
    written = json.loads(here.release.read_text())
    assert (written["outcome"], written["force_reason"]) == ("pushed", None)
    assert written["reason"].startswith("20 rounds ran")


def test_a_checkpoint_to_another_public_repository(hub: Any, finished_session: Any) -> None:
    here = finished_session("one")
    done = zk0_push(here.checkpoint(20), "--repo-id", "me/other", "--public")
    assert done.exit_code == 0, done.output
    assert hub.repositories.keys() == {"me/other"}
    assert not hub.repositories["me/other"].private


def test_no_push_after_19_rounds_without_a_reason(hub: Any, finished_session: Any) -> None:
    here = finished_session("short", rounds=19)
    refused = zk0_push(here.path)
    assert refused.exit_code == 1
    assert refused.stderr == (
        'zk0: not pushed: 19 rounds ran, expected at least 20; --force "REASON" pushes it nonetheless\n'
    )
    assert hub.requests == []
    assert not here.release.exists()
    forced = zk0_push(here.path, "--force", "to compare it on the arm")
    assert forced.exit_code == 0, forced.output
    written = json.loads(here.release.read_text())
    assert written["force_reason"] == "to compare it on the arm"
    assert written["reason"] == "19 rounds ran, expected at least 20"
    ((_, message, _),) = hub.repositories["lab/arm"].commits
    assert message == (
        "short, round 19: to compare it on the arm (by hand; release rule: 19 rounds ran, expected at least 20)"
    )


@pytest.mark.parametrize("options", [["--repo-id", "no-slash"], ["--repo-id", "a/b/c"]])
def test_invalid_repository_names(finished_session: Any, options: list[str]) -> None:
    failed = zk0_push(finished_session("one").path, *options)
    assert failed.exit_code == 2
    assert failed.stderr.startswith("zk0: zk0 push: publish.repo_id: ")


def test_a_folder_without_a_checkpoint(tmp_path: Path, finished_session: Any) -> None:
    failed = zk0_push(tmp_path)
    assert failed.exit_code == 2
    assert "no saved checkpoint; expected a session's folder or models/checkpoint_round_N" in failed.stderr
    here = finished_session("one")
    moved = here.checkpoint(20).rename(here.path / "models" / "checkpoint_round_21")
    assert f"round 21 is not in {here.ledger}" in zk0_push(moved).stderr

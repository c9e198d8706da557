"""The saved policy of a session: `zk0 arm run`, `zk0 rollout` and `zk0 push` find it in the session's folder."""

from pathlib import Path
from typing import Any

import pytest
from finished_session import round_record
from typer.testing import CliRunner

from flows.cli.main import zk0_app
from flows.cli.policy_argument import find_policy
from flows.cli.push_command import find_checkpoint
from zk0.audit.ledger import Ledger
from zk0.errors import SettingsError
from zk0.rules.kept_policy import find_kept_policy
from zk0.settings.loading import parse_session
from zk0.storage.session_folder import SessionFolder

LOSSES = (1.3, 0.5, 0.4, 0.6)


def made(folder: Path, saved: tuple[int, ...], **settings: Any) -> SessionFolder:
    """A session whose best round is the second of three, with these rounds' policies."""
    values = {"clients": [{"name": n, "dataset": f"sim:lift-{n}"} for n in ("red", "white")], "rounds": 3, **settings}
    evaluation = {"datasets": [{"dataset": "sim:lift-green"}]}
    here = SessionFolder(folder)
    here.create(parse_session(values | {"evaluation": evaluation}, "test"))
    for number, loss in enumerate(LOSSES):
        Ledger(here.ledger).append(round_record(number, loss))
    for number in saved:
        here.checkpoint(number).mkdir(parents=True)
    return here


@pytest.mark.parametrize(("selection", "kept"), [("last", 3), ("best", 2)])
def test_the_settings_decide_which_policy_is_kept(tmp_path: Path, selection: str, kept: int) -> None:
    here = made(tmp_path / "session", (1, 2, 3), selection=selection)
    found = find_kept_policy(here)
    assert (found.folder, found.round) == (here.checkpoint(kept), kept)
    assert found.reason.startswith(f"selection is {selection}; " if selection == "last" else "selection is best: ")
    session, number = find_checkpoint(here.path)
    assert (session.path, number) == (here.path, kept)


def test_a_session_stands_for_its_policy_and_says_which(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    here = made(tmp_path / "session", (2, 3), selection="best")
    for named in (here.path, here.path / "models"):
        assert find_policy(str(named)) == str(here.checkpoint(2))
        assert f"policy of the session: {here.checkpoint(2)} (round 2; selection is best: " in capsys.readouterr().err
    for other in (str(here.checkpoint(3)), "base", "lab/arm", str(tmp_path)):
        assert find_policy(other) == other
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("command", [["arm", "run"], ["rollout", "--out", "attempts", "--task", "lift-red"]])
def test_a_policy_that_is_not_saved_names_those_that_are(tmp_path: Path, command: list[str]) -> None:
    here = made(tmp_path / "session", (1, 2))
    done = CliRunner().invoke(zk0_app, [*command, str(here.path)])
    assert done.exit_code == 2
    assert f"{here.path}: its policy is that of round 3 (selection is last" in done.stderr
    assert f"give one of {here.checkpoint(1)}, {here.checkpoint(2)}" in done.stderr


def test_a_session_without_rounds_has_no_policy(tmp_path: Path) -> None:
    here = made(tmp_path / "session", ())
    with pytest.raises(SettingsError, match=r"round 3 .* which is not saved; no round is saved yet"):
        find_kept_policy(here)
    here.ledger.unlink()
    with pytest.raises(SettingsError, match="no finished round, so it has no policy yet"):
        find_kept_policy(here)


def test_a_folder_that_holds_no_policy_is_not_taken_for_one_without_a_reference(tmp_path: Path) -> None:
    done = CliRunner().invoke(zk0_app, ["arm", "run", str(tmp_path)])
    assert (done.exit_code, "config.json cannot be loaded" in done.stderr) == (1, True), done.output

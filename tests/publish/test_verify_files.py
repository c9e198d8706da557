"""`zk0 verify` finds every changed file of a session, of a saved policy and of a pushed repository."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from typer.testing import CliRunner

from flows.cli.main import zk0_app
from zk0.audit.ledger import Ledger
from zk0.audit.policy_digests import late_policies_file, read_late_policies, record_late_policy
from zk0.errors import CheckpointError, LedgerError
from zk0.publish.push_checkpoint import push_checkpoint
from zk0.publish.verify_files import verify_repository
from zk0.rules.release import Release, decide_release
from zk0.storage.session_folder import SessionFolder
from zk0.storage.sha256_sums import SUMS_FILE, sha256_of_folder, sums_text


def verify(*arguments: object) -> Any:
    return CliRunner().invoke(zk0_app, ["verify", *map(str, arguments)])


def push(hub: Any, here: SessionFolder) -> Release:
    history = Ledger(here.ledger).read()
    release = decide_release(here.read_session().publish, history, len(history) - 1)
    done = push_checkpoint(here, history[-1], release, SecretStr(hub.token))
    done.write(here.release)
    return done


def test_a_session_as_it_was_recorded(finished_session: Callable[..., SessionFolder]) -> None:
    here = finished_session()
    done = verify(here.path)
    assert done.exit_code == 0, done.output
    lines = done.output.splitlines()
    assert lines[0].startswith("ok      ledger.jsonl: 21 rounds, each line chained")
    assert lines[0].endswith(Ledger(here.ledger).root())
    assert lines[1].startswith("ok      round-000/weights.safetensors: ")
    assert lines[2].startswith("ok      round-020/weights.safetensors: ")
    assert lines[3].startswith("ok      models/checkpoint_round_20: every bit of all files (SHA-256)")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda p: os.truncate(p / "ledger.jsonl", 300) or (p / "ledger.jsonl").open("a").write("\n"), "ledger.jsonl"),
        (lambda p: os.truncate(p / "round-020/weights.safetensors", 300), "round-020/weights.safetensors"),
        (lambda p: (p / "models/checkpoint_round_20/config.json").write_text("{}"), "models/checkpoint_round_20"),
    ],
)
def test_a_changed_session(
    finished_session: Callable[..., SessionFolder], change: Callable[[Path], object], named: str
) -> None:
    here = finished_session()
    change(here.path)
    done = verify(here.path)
    assert done.exit_code == 1
    assert [line for line in done.output.splitlines() if line.startswith(f"WRONG   {named}: ")]


def test_a_session_with_missing_files(finished_session: Callable[..., SessionFolder]) -> None:
    """Weights of other rounds are removed by rule; those of the first and the last one and saved policies are not."""
    here = finished_session()
    for folder in ("models", "round-000", "round-020"):
        shutil.rmtree(here.path / folder)
    here.report.touch()
    done = verify(here.path)
    assert done.exit_code == 1
    wrong = [line for line in done.output.splitlines() if line.startswith("WRONG")]
    assert [line.split()[1] for line in wrong] == [
        "round-000/weights.safetensors:", "round-020/weights.safetensors:", "models/checkpoint_round_20:",
        "release.json:",
    ]  # fmt: skip
    assert all("missing, but " in line and line.endswith("; restore it from a copy") for line in wrong)


def edit_config(here: SessionFolder) -> None:
    """Change a policy's configuration, and rewrite its list of digests accordingly."""
    saved = here.checkpoint(20)
    (saved / "config.json").write_text('{"n_action_steps": 1}')
    (saved / SUMS_FILE).write_text(sums_text(sha256_of_folder(saved)))


@pytest.mark.parametrize("late", [False, True])
def test_a_changed_file_in_a_policy_with_a_list_of_its_own(late: bool, hub: Any, finished_session: Any) -> None:
    here = finished_session(late=late)
    assert verify(here.path).exit_code == 0
    edit_config(here)
    done = verify(here.path)
    assert done.exit_code == 1
    assert "config.json: not the SHA-256 that the session recorded" in done.output
    with pytest.raises(CheckpointError, match=r"config\.json: not the SHA-256 that the session recorded"):
        push(hub, here)
    assert "lab/arm" not in hub.repositories


def test_a_late_record_that_was_changed_or_removed(finished_session: Any) -> None:
    """It continues the ledger: it is not that of another session, and a policy without a record is reported."""
    one, other = finished_session("one", late=True), finished_session("other", late=True, scale=2.0)
    records, text = late_policies_file(one), late_policies_file(one).read_text()
    for changed in (text.replace('"round":20', '"round":19'), late_policies_file(other).read_text(), ""):
        edit_config(one)
        records.write_text(changed)
        assert verify(one.path).exit_code == 1, changed
    records.unlink()
    assert "the session has no recorded SHA-256 of this policy" in verify(one.path).output
    records.write_text(text)
    shutil.rmtree(one.checkpoint(20))
    assert "WRONG   models/checkpoint_round_20: missing" in verify(one.path).output


def test_the_digests_of_a_late_policy_are_recorded_once(finished_session: Any) -> None:
    here = finished_session(late=True)
    before = late_policies_file(here).read_text()
    record_late_policy(here, 20, read_late_policies(here)[20])
    assert late_policies_file(here).read_text() == before
    with pytest.raises(LedgerError, match="policy of round 20 with other files"):
        record_late_policy(here, 20, {"config.json": "0" * 64})


def test_weights_of_a_round_that_a_session_keeps(finished_session: Callable[..., SessionFolder]) -> None:
    here = finished_session()
    text = here.session_toml.read_text()
    here.session_toml.write_text(text.replace("keep_weights = false", "keep_weights = true"))
    done = verify(here.path)
    wrong = [line.split()[1] for line in done.output.splitlines() if line.startswith("WRONG")]
    assert wrong == [f"round-{number:03d}/weights.safetensors:" for number in range(1, 20)]


def test_the_weights_of_another_round_in_a_policy_with_a_list_of_its_own(
    finished_session: Callable[..., SessionFolder],
) -> None:
    one, other = finished_session("one"), finished_session("other", scale=2.0)
    for name in ("model.safetensors", SUMS_FILE):
        (one.checkpoint(20) / name).write_bytes((other.checkpoint(20) / name).read_bytes())
    (one.checkpoint(20) / SUMS_FILE).unlink()
    assert "cannot be read" in verify(one.path).output
    (one.checkpoint(20) / SUMS_FILE).write_text(sums_text(sha256_of_folder(one.checkpoint(20))))
    assert "not those of round 20" in verify(one.path).output


def test_a_saved_policy_alone(finished_session: Callable[..., SessionFolder]) -> None:
    folder = finished_session().checkpoint(20)
    assert "ok      SHA256SUMS: every bit of 7 files" in verify(folder).output
    (folder / "model.safetensors").write_bytes(b"other")
    done = verify(folder)
    assert done.exit_code == 1
    assert "model.safetensors was changed" in done.output


def test_a_folder_that_is_neither(tmp_path: Path) -> None:
    done = verify(tmp_path)
    assert done.exit_code == 2
    assert "expected a session or a saved policy" in done.output


def test_the_release_names_the_sha256_of_each_pushed_file(hub: Any, finished_session: Any) -> None:
    here = finished_session()
    files = push(hub, here).files
    repository = hub.repositories["lab/arm"]
    assert files.keys() == repository.files().keys()
    (stored,) = [oid for oid in hub.stored if oid == files["model.safetensors"]]
    assert hub.stored[stored] == (here.checkpoint(20) / "model.safetensors").read_bytes()
    assert "ok      release.json: " in verify(here.path).output


def test_a_pushed_repository(hub: Any, finished_session: Any) -> None:
    here = finished_session()
    push(hub, here)
    assert verify_repository(here, SecretStr(hub.token)).problem is None
    release = json.loads(here.release.read_text())
    files = hub.repositories["lab/arm"].files(release["commit"])
    files["model.safetensors"] = b"other"
    files["config.json"] = b"{}"
    found = verify_repository(here, SecretStr(hub.token))
    assert found.problem == "differ from the pushed files: config.json, model.safetensors"

"""A session file is parsed once on its way into a session, and again only after it changed; each run has a folder."""

import fcntl
import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import pytest
from typer.testing import CliRunner

from flows.cli.main import zk0_app
from flows.session_loading import check_session_inputs, load_session_to_run
from zk0.errors import SettingsError

ROOT = Path(__file__).parents[2]
TOML = """
rounds = {rounds}
[[clients]]
name = "a"
dataset = "sim:lift-red"
[[evaluation.datasets]]
dataset = "sim:lift-green"
[federation]
min_updates = 1
"""


def test_an_unchanged_file_is_parsed_once(tmp_path: Path) -> None:
    config = tmp_path / "session.toml"
    config.write_text(TOML.format(rounds=3))
    first = load_session_to_run(config, {"training.lr": 0.5})
    assert load_session_to_run(config, {"training.lr": 0.5}) is first
    assert (first.rounds, first.training.lr) == (3, 0.5)
    assert load_session_to_run(config, {"training.lr": 0.25}).training.lr == 0.25
    config.write_text(TOML.format(rounds=12))
    assert load_session_to_run(config, {"training.lr": 0.25}).rounds == 12


def test_relative_paths_start_at_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tmp_path / "session.toml"
    config.write_text(TOML.format(rounds=1))
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        assert load_session_to_run(config).output_dir == str(tmp_path / name / "outputs")


def test_faults_are_reported_each_time(tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(SettingsError, match="cannot be read"):
            load_session_to_run(tmp_path / "none.toml")
    config = tmp_path / "session.toml"
    config.write_text(TOML.format(rounds=1))
    for _ in range(2):
        with pytest.raises(SettingsError, match=r"aggregation.strategy: expected one of .*, found 'fedavgg'"):
            load_session_to_run(config, {"aggregation.strategy": "fedavgg"})


def test_a_session_without_buffered_rounds_has_no_order_to_repeat(tmp_path: Path) -> None:
    config = tmp_path / "session.toml"
    config.write_text(TOML.format(rounds=1) + 'mode = "buffered"\n[buffer]\nsize = 1\n')
    settings = {"buffer.order_of": str(tmp_path), "output_dir": str(tmp_path), "cache_dir": str(tmp_path)}
    session = load_session_to_run(config, settings)
    with pytest.raises(SettingsError, match="no buffered round; expected the folder of a buffered session"):
        check_session_inputs(session)


def test_runs_of_one_second_have_folders_of_their_own() -> None:
    from prefect.client.schemas.objects import FlowRun

    from flows.session_location import folder_of_flow_run
    from zk0.settings.loading import load_session

    session = load_session(ROOT / "deployments/sessions/demo.toml")
    created = datetime(2026, 11, 22, 10, tzinfo=UTC)
    runs = [FlowRun(flow_id=uuid4(), created=created) for _ in range(3)]
    folders = [folder_of_flow_run(run, session) for run in runs]
    assert len(set(folders)) == 3
    assert folders == [folder_of_flow_run(run, session) for run in runs]
    assert all(re.fullmatch(r"2026-11-22_\d\d-00-00-[0-9a-f]{6}_demo", folder.name) for folder in folders)


def test_datasets_and_policy_are_checked_by_their_metadata_without_heavy_imports(tmp_path: Path) -> None:
    """One list of all faults; neither PyTorch nor LeRobot is imported for it."""
    config = tmp_path / "session.toml"
    config.write_text(
        TOML.format(rounds=1).replace('"sim:lift-red"', '"local:/no/such"') + '[policy]\npath = "/none"\n'
    )
    code = (
        "import sys; from pathlib import Path; from zk0.errors import DatasetError\n"
        "from flows.session_loading import check_session_inputs, load_session_to_run\n"
        "session = load_session_to_run(Path(sys.argv[1]))\n"
        "try: check_session_inputs(session)\n"
        "except DatasetError as e: sys.stdout.write(str(e))\n"
        "heavy = {'torch', 'lerobot', 'transformers', 'prefect', 'flwr'} & set(sys.modules)\n"
        "sys.exit(f'imported: {heavy}' if heavy else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(config)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "session: 2 faults, found before anything was started:"
    assert [line.strip() for line in lines if line.startswith("  ") and not line.startswith("    ")] == [
        "local:/no/such (client a)", "policy /none",
    ]  # fmt: skip


@pytest.mark.parametrize("setting", ["cache_dir", "output_dir"])
def test_folders_that_cannot_be_written_end_a_session_before_it_starts(tmp_path: Path, setting: str) -> None:
    """Also under Prefect, whose flow checks the same."""
    from flows.session_loading import check_session_inputs, load_session_to_run

    config = tmp_path / "session.toml"
    config.write_text(TOML.format(rounds=1))
    session = load_session_to_run(config, {setting: "/proc/nope"})
    with pytest.raises(SettingsError, match=f"{setting}: /proc/nope cannot be made, because /proc cannot be written"):
        check_session_inputs(session)


def test_the_lock_of_a_running_session_is_looked_at_first(tmp_path: Path) -> None:
    """Before its settings, which are wrong here, and before a server is started."""
    (tmp_path / "session.toml").write_text("no = 'setting'")
    with (tmp_path / ".lock").open("w") as lock:
        lock.write("4711")
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        refused = CliRunner().invoke(zk0_app, ["run", "--resume", str(tmp_path)])
    assert (refused.exit_code, refused.stderr) == (
        2, f"zk0: {tmp_path}: process 4711 is working on this session; wait for it or stop it\n",
    )  # fmt: skip
    assert "no: unknown setting" in CliRunner().invoke(zk0_app, ["run", "--resume", str(tmp_path)]).stderr

"""`zk0 data` on the command line, and the dataset intake as a flow."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from flows.cli.data_command import data_app
from zk0.records import DatasetReport, Statistics
from zk0.settings.dataset_settings import SO101_JOINTS

DATA = "data/chunk-000/file-000.parquet"


@pytest.fixture(scope="module")
def healthy(tmp_path_factory) -> Path:
    """Four short episodes of one camera."""
    from zk0.data.dataset_writer import RecordedFrame, write_dataset

    rng = np.random.default_rng(0)

    def episode() -> list[RecordedFrame]:
        states = np.cumsum(rng.normal(0, 8, (10, 6)), axis=0).astype(np.float32)
        states[:, 5] = np.clip(50 + states[:, 5], 5, 95)  # the gripper goes from 0 to 100
        image = rng.integers(0, 255, (64, 64, 3), dtype=np.uint8)
        return [
            RecordedFrame(states[t], states[t] + 1, {"wrist": np.roll(image, 3 * t, axis=0)}, "Pick up the cube.")
            for t in range(10)
        ]

    root = tmp_path_factory.mktemp("data") / "healthy"
    write_dataset(root, [episode() for _ in range(4)], fps=10, joints=SO101_JOINTS, robot_type="so101_follower")
    return root


@pytest.fixture
def doubled(healthy, tmp_path) -> Path:
    """The same with every row twice."""
    root = Path(shutil.copytree(healthy, tmp_path / "doubled"))
    table = pq.read_table(root / DATA)
    pq.write_table(pa.concat_tables([table, table]), root / DATA)
    return root


def zk0(*arguments: object):
    return CliRunner().invoke(data_app, [str(a) for a in arguments])


def test_check_of_a_healthy_dataset(healthy) -> None:
    result = zk0("check", f"local:{healthy}")
    assert result.exit_code == 0, result.output
    assert "0 errors, 0 warnings: may take part" in result.output.replace("\n", "")
    assert "episodes  4" in result.output
    assert "quality   clean" in result.output


def test_check_prints_findings_and_exits_with_1(doubled) -> None:
    result = zk0("check", f"local:{doubled}", "--quick")
    assert result.exit_code == 1
    assert "doubled-rows" in result.output
    assert "80 rows for 40 frames" in result.output
    assert "drop-duplicates" in result.output


def test_check_in_json_is_the_report(doubled) -> None:
    result = zk0("check", f"local:{doubled}", "--json")
    values = json.loads(result.stdout)
    assert (values.pop("quality"), values.pop("episode_rules")) == ("errors", {})
    report = DatasetReport.model_validate(values)
    assert [f.rule for f in report.findings] == ["doubled-rows"]
    assert result.exit_code == 1


def test_check_against_the_contract_of_a_session(healthy, tmp_path) -> None:
    session = tmp_path / "session.toml"
    text = '[[clients]]\nname = "a"\ndataset = "x/y"\n[[evaluation.datasets]]\ndataset = "x/z"\n'
    session.write_text(f'[federation]\nmin_updates = 1\n[contract]\ncameras = ["hand"]\n{text}')
    result = zk0("check", f"local:{healthy}", "--session", session, "--units", "degrees", "--json")
    findings = json.loads(result.stdout)["findings"]
    assert [f["rule"] for f in findings] == ["contract-cameras"]
    assert "map observation.images.wrist -> observation.images.hand" in findings[0]["expected"]
    mapped = "observation.images.wrist=observation.images.hand"
    assert zk0("check", f"local:{healthy}", "--session", session, "--rename", mapped).exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["check", "local:/no/such/folder"], 1, "zk0: local:/no/such/folder: no such folder"),
        (["check", "/no/such/folder"], 1, "zk0: local:/no/such/folder: no such folder"),
        (["check", "not a uri"], 1, "zk0: not a uri: "),
        (["check", "local:/", "--rename", "nonsense"], 2, "zk0: --rename nonsense: expected OLD=NEW"),
        (["check", "local:/", "--session", "/no/such.toml"], 2, "zk0: /no/such.toml: cannot be read"),
    ],
)
def test_wrong_input_fails_with_one_line(arguments, code, message) -> None:
    result = zk0(*arguments)
    assert result.exit_code == code
    assert result.stderr.startswith(message)
    assert result.stderr.count("\n") == 1


def test_repair_writes_a_copy_that_passes(doubled, tmp_path) -> None:
    result = zk0("repair", f"local:{doubled}", tmp_path / "fixed")
    assert result.exit_code == 0, result.output
    assert "drop-duplicates" in result.output
    assert zk0("check", f"local:{tmp_path / 'fixed'}").exit_code == 0
    refused = zk0("repair", f"local:{tmp_path / 'fixed'}", doubled)
    assert refused.exit_code == 1
    assert "exists already" in refused.stderr


def test_split_and_overlap(healthy, doubled, tmp_path) -> None:
    result = zk0("split", f"local:{healthy}", "--holdout", 1, "--partitions", 2, "--json")
    assert json.loads(result.stdout) == [
        {"train": [0, 2], "held_out": [3]},
        {"train": [1], "held_out": [3]},
    ]
    renamed = shutil.copytree(healthy, tmp_path / "renamed")
    result = zk0("split", f"local:{healthy}", "--against", f"local:{renamed}")
    assert result.exit_code == 1
    assert f"local:{healthy} and local:{renamed} share 4 episode(s)" in result.stderr
    assert zk0("split", f"local:{healthy}", "--holdout", 4).exit_code == 1


def test_stats_are_those_of_the_training_episodes(healthy) -> None:
    found = Statistics.model_validate_json(zk0("stats", f"local:{healthy}", "--holdout", 2, "--json").stdout)
    rows = np.stack(pq.read_table(healthy / DATA)["observation.state"].to_numpy())[:20].astype(np.float64)
    assert found.state.count == 20
    np.testing.assert_allclose(found.state.mean, rows.mean(0), atol=1e-9)
    np.testing.assert_allclose(found.state.std, rows.std(0), atol=1e-9)
    assert "gripper.pos" in zk0("stats", f"local:{healthy}").output


def test_help_names_every_command() -> None:
    output = zk0("--help").output
    assert all(name in output for name in ("check", "repair", "split", "stats"))


# ── the flow ──────────────────────────────────────────────────────────────────


@pytest.fixture
def prefect_server(prefect_api):
    """Flows in this process use a server of the tests, which receives all logs and events before it ends."""
    from prefect.settings import PREFECT_API_URL, temporary_settings

    from tasks.prefect_private import flush_logs_and_events

    with temporary_settings({PREFECT_API_URL: prefect_api}):
        yield
        flush_logs_and_events()


def artifact(key: str):
    from prefect.artifacts import Artifact

    found = Artifact.get(key)
    assert found is not None
    return found


def test_the_intake_previews_accepts_and_rejects(prefect_server, healthy, doubled, tmp_path) -> None:
    from flows.dataset_intake import dataset_intake
    from zk0.errors import DatasetError

    report = dataset_intake(f"local:{healthy}")
    assert report.errors == ()
    shown = artifact("dataset-preview").data
    assert shown.count("data:image/png;base64,") == 2
    assert "## Frames" in shown
    assert "## Joints" in shown
    with pytest.raises(DatasetError, match="may not take part: doubled-rows"):
        dataset_intake(f"local:{doubled}", quick=True, pictures=False)
    assert "doubled-rows" in artifact("dataset-findings").data
    fixed = dataset_intake(f"local:{doubled}", repair_to=str(tmp_path / "fixed"), pictures=False)
    assert fixed.errors == ()
    assert fixed.root == str(tmp_path / "fixed")
    assert dataset_intake(f"local:{doubled}", repair_to=str(tmp_path / "fixed"), pictures=False) == fixed


def test_list_rules_prints_every_rule() -> None:
    rules = json.loads(CliRunner().invoke(data_app, ["list-rules", "--json"]).output)
    assert len({r["id"] for r in rules}) == len(rules) > 70
    assert set(rules[0]) == {"id", "meaning", "severity", "error_if", "repairs", "repair_if"}
    lines = CliRunner().invoke(data_app, ["list-rules"]).output.splitlines()
    assert len(lines) == len(rules)
    assert "error    doubled-rows: Every frame is stored once" in "\n".join(lines)

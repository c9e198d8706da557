"""prefect.yaml fits the flows, the session files and the pool; a schedule creates runs."""

import asyncio
import json
import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
import yaml
from prefect.client.schemas.actions import DeploymentScheduleCreate
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterId, FlowRunFilter
from prefect.client.schemas.schedules import CronSchedule
from prefect.flows import load_flow_from_entrypoint
from prefect.server.schemas.schedules import CronSchedule as ServerCronSchedule

ROOT = Path(__file__).parents[2]
DEPLOYMENTS = {d["name"]: d for d in yaml.safe_load((ROOT / "prefect.yaml").read_text(encoding="utf-8"))["deployments"]}
HEAVY = ("torch", "lerobot", "flwr", "mujoco", "matplotlib", "transformers", "wandb")


@pytest.fixture(params=DEPLOYMENTS, ids=str)
def deployment(request: pytest.FixtureRequest) -> dict[str, Any]:
    return DEPLOYMENTS[request.param]


def test_flows_are_imported_lightly() -> None:
    """Workers import the flows too, for their hooks: that must not import PyTorch."""
    entrypoints = sorted({d["entrypoint"] for d in DEPLOYMENTS.values()})
    look = (
        "import json, sys; from prefect.flows import load_flow_from_entrypoint as load; "
        f"print(json.dumps([[load(one).name, sorted(sys.modules)] for one in {entrypoints}]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", look], cwd=ROOT, capture_output=True, text=True, check=True, timeout=120
    )
    found = dict(zip(entrypoints, json.loads(done.stdout.splitlines()[-1]), strict=True))
    assert all(name for name, _ in found.values())
    assert {one: heavy for one, (_, modules) in found.items() if (heavy := set(HEAVY) & set(modules))} == {}


def test_parameters_fit_the_flow(deployment: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    flow = load_flow_from_entrypoint(deployment["entrypoint"])
    parameters = deployment.get("parameters", {})
    assert set(parameters) <= set(flow.parameters.properties)
    by_deployment = {
        "dataset-intake": {"uri": "local:data"},
        "settings-comparison": {"vary": {"training.lr": [1e-4, 1e-3]}},
    }
    required = by_deployment.get(deployment["name"], {})
    assert flow.validate_parameters(parameters | required).items() >= parameters.items()


def test_the_session_file_exists(deployment: dict[str, Any]) -> None:
    from zk0.settings.loading import load_session

    if config := deployment.get("parameters", {}).get("config"):
        assert load_session(ROOT / config).rounds >= 1


def test_the_pool_has_a_template(deployment: dict[str, Any]) -> None:
    pool = json.loads((ROOT / "deployments" / "pools" / f"{deployment['work_pool']['name']}-process.json").read_text())
    wanted = re.findall(r"{{ (\w+) }}", json.dumps(pool["job_configuration"]))
    assert wanted
    assert set(wanted) == pool["variables"]["properties"].keys()
    variables = deployment["work_pool"].get("job_variables", {})
    assert set(variables) <= set(wanted)
    assert "CUDA_VISIBLE_DEVICES" not in variables.get("env", {}), "it would replace the worker's"


@pytest.mark.parametrize(
    "zone",
    ["Europe/Vienna", "Europe/London", "Atlantic/Azores", "Africa/Cairo", "America/New_York", "America/Santiago",
     "Antarctica/Troll", "Australia/Lord_Howe", "Pacific/Auckland"],
)  # fmt: skip
def test_the_hour_of_the_docs_is_on_every_day(zone: str) -> None:
    """Zones that skip an hour between 0 and 3 on one day of the year."""
    (example,) = re.findall(r'schedule create .* --cron "(.*)" --timezone', (ROOT / "docs/running.md").read_text())
    schedule, begin = ServerCronSchedule(cron=example, timezone=zone), datetime(2027, 1, 1, 12, tzinfo=UTC)
    starts = [start.astimezone(ZoneInfo(zone)) for start in asyncio.run(schedule.get_dates(n=366, start=begin))]
    assert {(start.hour, start.minute) for start in starts} == {(4, 0)}
    assert (starts[-1].date() - starts[0].date()).days + 1 == len(starts) == 366


def test_a_schedule_creates_runs(local_prefect: Any, wait_until: Any) -> None:
    """SQLAlchemy 2.1 broke Prefect's scheduler without an error: it created no run."""
    parameters = {"config": "deployments/sessions/demo.toml", "overrides": {"rounds": 7}}
    with local_prefect.client() as client:
        flow = client.read_deployment_by_name("zk0/federated-session").flow_id
        nightly = client.create_deployment(
            flow_id=flow,
            name="every-night",
            entrypoint=DEPLOYMENTS["federated-session"]["entrypoint"],
            parameters=parameters,
            schedules=[DeploymentScheduleCreate(schedule=CronSchedule(cron="30 3 * * *", timezone="Europe/Vienna"))],
        )  # no pool: no worker runs it
        try:
            only = DeploymentFilter(id=DeploymentFilterId(any_=[nightly]))
            runs = wait_until(
                lambda: client.read_flow_runs(deployment_filter=only, flow_run_filter=FlowRunFilter()), 90
            )
            assert {r.state_name for r in runs} == {"Scheduled"}
            assert all(r.auto_scheduled for r in runs)
            assert all(r.parameters == parameters for r in runs)
            local = [r.expected_start_time.in_timezone("Europe/Vienna") for r in runs]
            assert {(t.hour, t.minute) for t in local} == {(3, 30)}
        finally:
            client.delete_deployment(nightly)

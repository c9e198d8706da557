"""prefect.yaml fits the flows, the session files and the pool; a schedule creates runs."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect.client.schemas.actions import DeploymentScheduleCreate
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterId, FlowRunFilter
from prefect.client.schemas.schedules import CronSchedule
from prefect.flows import load_flow_from_entrypoint

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

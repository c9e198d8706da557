"""The deployments of prefect.yaml, the pools and the automations on a real Prefect server."""

import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.exceptions import PrefectHTTPStatusError

from zk0.audit.ledger import Ledger

NO_ROLLOUT = {"rollout.tasks": []}
pytestmark = pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds processes in /proc")
ROOT = Path(__file__).parents[2]
EXPECTED = {
    "zk0/federated-session": ({"config", "overrides", "resume", "moved"}, "ENQUEUE"),
    "zk0/smoke": ({"config", "overrides", "resume", "moved"}, None),
    "zk0-intake/dataset-intake": ({"uri", "repair_to", "quick", "pictures", "rename_map", "cache"}, None),
    "zk0-tune/search": (
        {"config", "overrides", "space", "trials", "objective", "folder", "keep_weights"},
        None,
    ),
    "zk0-benchmark/federated-vs-centralized": (
        {"config", "overrides", "seeds", "folder", "larger_batches"},
        "ENQUEUE",
    ),
    "zk0-benchmark/settings-comparison": ({"vary", "config", "overrides", "seeds", "folder"}, "ENQUEUE"),
    "zk0-benchmark/nightly": ({"sessions", "benchmarks", "repeats", "least", "ledger", "accept"}, "CANCEL_NEW"),
}
"""Parameters of the form in the UI, and the collision strategy for a second run."""


@pytest.mark.parametrize("name", EXPECTED)
def test_a_deployment_on_the_server(local_prefect: Any, name: str) -> None:
    parameters, collision = EXPECTED[name]
    with local_prefect.client() as client:
        found = client.read_deployment_by_name(name)
    assert found.parameter_openapi_schema["properties"].keys() == parameters
    assert all("description" in p for p in found.parameter_openapi_schema["properties"].values())
    assert found.description
    assert found.work_pool_name == "gpu"
    assert found.work_queue_name == "default"
    options = found.concurrency_options
    assert (options and options.collision_strategy) == collision
    assert (found.global_concurrency_limit and found.global_concurrency_limit.limit) == (1 if collision else None)


def test_nothing_else_is_deployed(local_prefect: Any) -> None:
    with local_prefect.client() as client:
        flows = {flow.id: flow.name for flow in client.read_flows()}
        names = {f"{flows[d.flow_id]}/{d.name}" for d in client.read_deployments()}
    assert names == EXPECTED.keys()


def test_the_nightly_benchmark_has_a_schedule(local_prefect: Any) -> None:
    with local_prefect.client() as client:
        (schedule,) = client.read_deployment_by_name("zk0-benchmark/nightly").schedules
    assert schedule.active
    assert (schedule.schedule.cron, schedule.schedule.timezone) == ("0 2 * * *", "Etc/UTC")


def test_wrong_parameters_are_refused(local_prefect: Any) -> None:
    with local_prefect.client() as client:
        for name, parameters, message in (
            ("zk0-benchmark/nightly", {"repeats": "many"}, "repeats"),
            ("zk0-intake/dataset-intake", {}, "uri"),
        ):
            deployment = client.read_deployment_by_name(name).id
            with pytest.raises(PrefectHTTPStatusError, match=message):
                client.create_flow_run_from_deployment(deployment, parameters=parameters)


@pytest.mark.parametrize("kind", ["docker", "kubernetes"])
def test_a_pool_of_another_kind(local_prefect: Any, kind: str) -> None:
    """Docker and Kubernetes templates: the server checks that every placeholder is a variable."""
    template = json.loads((ROOT / "deployments" / "pools" / f"gpu-{kind}.json").read_text())
    wanted = set(re.findall(r"{{ (\w+) }}", json.dumps(template["job_configuration"])))
    variables = template["variables"]
    assert wanted == variables["properties"].keys()
    process = json.loads((ROOT / "deployments" / "pools" / "gpu-process.json").read_text())["variables"]
    names = variables["properties"]["env"]["propertyNames"]
    assert names == process["properties"]["env"]["propertyNames"]
    assert variables["properties"]["env"]["default"].keys() <= set(names["enum"])
    assert variables["additionalProperties"] is False
    code = {"command", "image", "volumes", "network_mode", "networks", "service_account_name", "working_dir"}
    assert not code & variables["properties"].keys(), "a flow run would name a program or a folder of the host"
    with local_prefect.client() as client:
        made = client.create_work_pool(WorkPoolCreate(name=f"gpu-{kind}", type=kind, base_job_template=template))
        try:
            assert made.base_job_template == template
        finally:
            client.delete_work_pool(f"gpu-{kind}")


@pytest.fixture
def automated(local_prefect: Any, tmp_path: Path) -> Iterator[dict[str, Any]]:
    """The automations of the file by name, with a shorter heartbeat; they are on the server during the test."""
    text = (ROOT / "deployments/automations.yaml").read_text(encoding="utf-8")
    assert text.count("within: 90") == 1
    (tmp_path / "automations.yaml").write_text(text.replace("within: 90", "within: 15"), encoding="utf-8")
    done = local_prefect.prefect("automation", "create", "--from-file", str(tmp_path / "automations.yaml"))
    assert done.returncode == 0, done.stdout + done.stderr
    with local_prefect.client() as client:
        found = {a["name"]: a for a in client.request("POST", "/automations/filter", json={}).json()}
    yield found
    with local_prefect.client() as client:
        for automation in found.values():
            client.request("DELETE", f"/automations/{automation['id']}")


def test_automations_are_accepted(automated: dict[str, Any]) -> None:
    assert automated.keys() == {
        "zk0 benchmark regressed",
        "zk0 crashed session is resumed",
        "zk0 run without heartbeat has crashed",
    }
    assert all(a["enabled"] for a in automated.values())
    expected = automated["zk0 run without heartbeat has crashed"]["trigger"]["expect"]
    assert {"prefect.flow-run.Suspended", "prefect.flow-run.Paused"} <= set(expected), (
        "a run that waits for approval sends no heartbeat"
    )


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_crashed_session_is_resumed_by_an_automation(
    local_prefect: Any, automated: dict[str, Any], finished: Any, wait_until: Callable[..., Any]
) -> None:
    with local_prefect.client() as client:  # on a busy machine an import takes longer
        client.request(
            "PATCH", f"/automations/{automated['zk0 run without heartbeat has crashed']['id']}", json={"enabled": False}
        )
    run = local_prefect.start_session(local_prefect.overrides("automatic", **NO_ROLLOUT, **{"federation.workers": 0}))
    wait_until(lambda: list((local_prefect.home / "automatic").glob("*/round-002/updates")), pause=0.01)
    local_prefect.kill_flow(run)
    assert local_prefect.final_state(run).is_crashed()

    def successor() -> UUID | None:
        with local_prefect.client() as client:
            runs = client.read_flow_runs(limit=200)
        return next((r.id for r in runs if r.parameters.get("resume") == str(run)), None)

    assert local_prefect.final_state(wait_until(successor, pause=1)).is_completed()
    (folder,) = (local_prefect.home / "automatic").iterdir()
    (uninterrupted,) = (local_prefect.home / "uninterrupted").iterdir()
    digests = [[r.checkpoint.digest for r in Ledger(f / "ledger.jsonl").read()] for f in (folder, uninterrupted)]
    assert digests[0] == digests[1]


@pytest.mark.timeout(900)
def test_a_run_without_heartbeat_is_marked_crashed(
    local_prefect: Any, automated: dict[str, Any], wait_until: Callable[..., Any]
) -> None:
    """One heartbeat and then none, as when a machine is switched off."""
    from prefect.events import emit_event
    from prefect.states import Running

    with local_prefect.client() as client:
        deployment = client.read_deployment_by_name("zk0-intake/dataset-intake").id
        # no worker runs it: it is Running already, and workers look for Scheduled runs
        run = client.create_flow_run_from_deployment(deployment, parameters={"uri": "x/y"}, state=Running()).id
    with local_prefect.settings():
        emit_event("prefect.flow-run.heartbeat", resource={"prefect.resource.id": f"prefect.flow-run.{run}"})
        time.sleep(2)
    assert local_prefect.final_state(run).is_crashed()
    assert local_prefect.state(run).message == "no heartbeat for 90 s"

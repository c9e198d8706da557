"""Everything of prefect.yaml, the pools and the automations on a real server."""

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

from zk0.ledger import Ledger

pytestmark = pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds processes in /proc")
ROOT = Path(__file__).parents[2]
EXPECTED = {
    "zk0/federated-session": ({"config", "overrides", "resume"}, "ENQUEUE"),
    "zk0/smoke": ({"config", "overrides", "resume"}, None),
    "zk0-intake/dataset-intake": ({"uri", "repair_to", "quick", "pictures", "rename_map", "cache"}, None),
    "zk0-tune/search": (
        {"config", "overrides", "space", "trials", "objective", "folder", "keep_weights"},
        None,
    ),
    "zk0-benchmark/federated-vs-centralised": (
        {"config", "overrides", "seeds", "folder", "larger_batches"},
        "ENQUEUE",
    ),
    "zk0-benchmark/nightly": ({"sessions", "benchmarks", "repeats", "least", "ledger", "accept"}, "CANCEL_NEW"),
}
"""Parameters of the form, and what happens to a second run."""


@pytest.mark.parametrize("name", EXPECTED)
def test_a_deployment_as_the_server_knows_it(stack: Any, name: str) -> None:
    parameters, collision = EXPECTED[name]
    with stack.client() as client:
        found = client.read_deployment_by_name(name)
    assert found.parameter_openapi_schema["properties"].keys() == parameters
    assert all("description" in p for p in found.parameter_openapi_schema["properties"].values())
    assert found.description
    assert found.work_pool_name == "gpu"
    assert found.work_queue_name == "default"
    options = found.concurrency_options
    assert (options and options.collision_strategy) == collision
    assert (found.global_concurrency_limit and found.global_concurrency_limit.limit) == (1 if collision else None)


def test_nothing_else_is_deployed(stack: Any) -> None:
    with stack.client() as client:
        flows = {flow.id: flow.name for flow in client.read_flows()}
        names = {f"{flows[d.flow_id]}/{d.name}" for d in client.read_deployments()}
    assert names == EXPECTED.keys()


def test_the_benchmark_comes_every_night(stack: Any) -> None:
    with stack.client() as client:
        (schedule,) = client.read_deployment_by_name("zk0-benchmark/nightly").schedules
    assert schedule.active
    assert (schedule.schedule.cron, schedule.schedule.timezone) == ("0 2 * * *", "Etc/UTC")


def test_what_the_form_refuses(stack: Any) -> None:
    with stack.client() as client:
        for name, parameters, said in (
            ("zk0-benchmark/nightly", {"repeats": "many"}, "repeats"),
            ("zk0-intake/dataset-intake", {}, "uri"),
        ):
            deployment = client.read_deployment_by_name(name).id
            with pytest.raises(PrefectHTTPStatusError, match=said):
                client.create_flow_run_from_deployment(deployment, parameters=parameters)


@pytest.mark.parametrize("kind", ["docker", "kubernetes"])
def test_a_pool_of_another_kind(stack: Any, kind: str) -> None:
    """The server checks that every placeholder is a variable."""
    template = json.loads((ROOT / "deployments" / "pools" / f"gpu-{kind}.json").read_text())
    wanted = set(re.findall(r"{{ (\w+) }}", json.dumps(template["job_configuration"])))
    assert wanted == template["variables"]["properties"].keys()
    with stack.client() as client:
        made = client.create_work_pool(WorkPoolCreate(name=f"gpu-{kind}", type=kind, base_job_template=template))
        try:
            assert made.base_job_template == template
        finally:
            client.delete_work_pool(f"gpu-{kind}")


@pytest.fixture
def automated(stack: Any) -> Iterator[dict[str, Any]]:
    """The automations of the file by name, on the server meanwhile."""
    done = stack.prefect("automation", "create", "--from-file", "deployments/automations.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    with stack.client() as client:
        found = {a["name"]: a for a in client.request("POST", "/automations/filter", json={}).json()}
    yield found
    with stack.client() as client:
        for automation in found.values():
            client.request("DELETE", f"/automations/{automation['id']}")


def test_automations_are_accepted(automated: dict[str, Any]) -> None:
    assert automated.keys() == {
        "zk0 benchmark regressed",
        "zk0 crashed session is taken up",
        "zk0 silent run has crashed",
    }
    assert all(a["enabled"] for a in automated.values())
    silent = automated["zk0 silent run has crashed"]["trigger"]["expect"]
    assert {"prefect.flow-run.Suspended", "prefect.flow-run.Paused"} <= set(silent), "who waits for a person is alive"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_crashed_session_is_taken_up_by_itself(
    stack: Any, automated: dict[str, Any], finished: Any, wait_until: Callable[..., Any]
) -> None:
    run = stack.begin(stack.overrides("automatic"))
    wait_until(lambda: list((stack.home / "automatic").glob("*/round-002/updates")), pause=0.01)
    stack.kill_flow(run)
    assert stack.ended(run).is_crashed()

    def successor() -> UUID | None:
        with stack.client() as client:
            runs = client.read_flow_runs(limit=200)
        return next((r.id for r in runs if r.parameters.get("resume") == str(run)), None)

    assert stack.ended(wait_until(successor)).is_completed()
    (folder,) = (stack.home / "automatic").iterdir()
    (calm,) = (stack.home / "undisturbed").iterdir()
    digests = [[r.checkpoint.digest for r in Ledger(f / "ledger.jsonl").read()] for f in (folder, calm)]
    assert digests[0] == digests[1]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_silent_run_is_called_crashed(stack: Any, automated: dict[str, Any], wait_until: Callable[..., Any]) -> None:
    """A heartbeat and then nothing, as when a machine is switched off."""
    from prefect.events import emit_event
    from prefect.settings import PREFECT_API_URL, temporary_settings
    from prefect.states import Running

    with stack.client() as client:
        deployment = client.read_deployment_by_name("zk0-intake/dataset-intake").id
        # nobody takes it: it is Running before the worker looks for Scheduled ones
        run = client.create_flow_run_from_deployment(deployment, parameters={"uri": "x/y"}, state=Running()).id
    with temporary_settings({PREFECT_API_URL: stack.api_url}):
        emit_event("prefect.flow-run.heartbeat", resource={"prefect.resource.id": f"prefect.flow-run.{run}"})
        time.sleep(2)
    assert stack.ended(run).is_crashed()
    assert stack.state(run).message == "no heartbeat for 90 s"

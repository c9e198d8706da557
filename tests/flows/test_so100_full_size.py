"""deployments/sessions/so100.toml with a policy of the real size and random weights, a round each in three ways."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from published_hub import hub_in_use, publish_datasets, publish_full_base_policy

from zk0.audit.ledger import Ledger
from zk0.records import RoundRecord
from zk0.settings.loading import load_session

pytestmark = [pytest.mark.slow, pytest.mark.full_size, pytest.mark.timeout(3600)]
SESSION = Path(__file__).parents[2] / "deployments/sessions/so100.toml"
PARAMETERS = 450_046_176
SMALL = {
    "rounds": 1,
    "training.local_steps": 1,
    "training.batch_size": 2,
    "training.torch_threads": 2,
    "federation.workers": 0,
    "evaluation.times": 1,
    "evaluation.clients_frequency": 0,
    "video.episodes": 0,
}
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "lora": {"training.scope": "lora"},
    "int8": {"federation.wire": "int8", "federation.wire_down": "int8"},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("full-size")


@pytest.fixture(scope="module")
def full_hub(real_data: Path, folder: Path) -> Iterator[Any]:
    """The Hub with everything that the session loads, at the real size; each episode has two frames."""
    vlm = real_data.parent / "models" / "SmolVLM2-500M-Video-Instruct"
    if not vlm.is_dir():
        pytest.skip(f"no configuration of the full vision-language model at {vlm}")
    with hub_in_use(folder / "hub-cache") as hub:
        publish_datasets(hub, folder / "datasets", frames=2)
        publish_full_base_policy(hub, folder / "base", vlm)
        yield hub


@pytest.fixture(scope="module", params=list(KINDS))
def finished(
    full_hub: Any, prefect_api: str, folder: Path, request: pytest.FixtureRequest
) -> Iterator[tuple[str, Path]]:
    """The kind of a session and its folder; the sessions share the cached features."""
    import shutil

    from prefect.settings import PREFECT_API_URL, temporary_settings

    from flows.federated_session import federated_session

    places = {"output_dir": str(folder / request.param), "cache_dir": str(folder / "cache")}
    fewer = {} if request.param == "plain" else two_clients()
    with temporary_settings({PREFECT_API_URL: prefect_api}):
        yield request.param, Path(federated_session(str(SESSION), SMALL | places | KINDS[request.param] | fewer))
    shutil.rmtree(folder / request.param)  # some GB


def two_clients() -> dict[str, Any]:
    """Settings with one client of each calibration and the first evaluation set of the session."""
    session = load_session(SESSION)
    fields = {"name", "dataset", "rename_map", "units"}
    clients = [session.clients[at].model_dump(include=fields, exclude_none=True) for at in (0, 3)]
    unseen = session.evaluation.datasets[0].model_dump(include={"dataset", "units", "rename_map"})
    return {"clients": clients, "evaluation.datasets": [unseen]}


def test_one_round(finished: tuple[str, Path]) -> None:
    kind, folder = finished
    start, last = records(folder)
    clients = {"plain": ["pickplace", "so101-pickplace", "sorting", "stacking"]}.get(
        kind, ["pickplace", "so101-pickplace"]
    )
    assert [update.client for update in last.updates] == clients
    assert last.checkpoint.digest != start.checkpoint.digest
    shares = [update.bytes / start.checkpoint.bytes for update in last.updates]
    low, high = {"plain": (0.99, 1.01), "lora": (0.001, 0.1), "int8": (0.2, 0.27)}[kind]
    assert all(low < share < high for share in shares)
    assert last.evaluation.policy_loss > 0
    assert not list(folder.glob("clients/*/sessions/*"))


def test_the_saved_policy_is_complete(finished: tuple[str, Path]) -> None:
    """All weights are there in the dtype of the policy, and a state of mean + std becomes 1 in LeRobot's processors."""
    from lerobot.processor import PolicyProcessorPipeline
    from safetensors import safe_open

    _, folder = finished
    saved = folder / "models/checkpoint_round_1"
    with safe_open(saved / "model.safetensors", "pt") as file:
        sizes = [torch.Size(file.get_slice(name).get_shape()).numel() for name in file.keys()]  # noqa: SIM118
    assert sum(sizes) == PARAMETERS
    config = json.loads((saved / "config.json").read_text(encoding="utf-8"))
    assert config["vlm_model_name"].startswith("HuggingFaceTB/")
    assert config["device"] is None
    moments = json.loads((folder / "session_setup.json").read_text(encoding="utf-8"))["statistics"]["state"]
    state = torch.tensor(moments["mean"]) + torch.tensor(moments["std"])
    processor = PolicyProcessorPipeline.from_pretrained(
        saved, "policy_preprocessor.json", overrides={"device_processor": {"device": "cpu"}}
    )
    normalized = processor({"observation.state": state, "task": "Pick up the cube"})["observation.state"]
    torch.testing.assert_close(normalized, torch.ones(1, 6), atol=1e-4, rtol=0)


def test_nothing_needless_is_fetched(finished: tuple[str, Path], full_hub: Any) -> None:
    assert full_hub.count_requests(r"SmolVLM2.*config\.json") > 0
    assert full_hub.count_requests(r"SmolVLM2.*(safetensors|\.bin)") == 0
    assert full_hub.count_requests(r"GET .*smolvla_base.*model\.safetensors") <= 2  # first only its header


def records(folder: Path) -> tuple[RoundRecord, ...]:
    return Ledger(folder / "ledger.jsonl").read()

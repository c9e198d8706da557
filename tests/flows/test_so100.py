"""deployments/sessions/so100.toml as it stands, from a Hub on loopback, with tiny datasets and a tiny policy."""

import json
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from published_hub import DATASETS, OLDER, OPTIONAL, SIDE, hub_in_use, publish_base_policy, publish_datasets

from zk0.records import Moments

ROOT = Path(__file__).parents[2]
SMALL = {
    "rounds": 1,
    "training.local_steps": 2,
    "training.batch_size": 4,
    "federation.workers": 0,
    "evaluation.times": 2,
    "video.episodes": 0,
}


@pytest.fixture(scope="module")
def real_hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The Hub with everything that the session loads."""
    folder = tmp_path_factory.mktemp("hub")
    with hub_in_use(folder / "hub-cache") as hub:
        publish_datasets(hub, folder / "datasets")
        publish_base_policy(hub, folder / "base", folder / "cache")
        yield hub


@pytest.fixture(scope="module")
def folder_bytes() -> list[int]:
    """Size of the session's folder at each of its progress events."""
    return []


@pytest.fixture(scope="module")
def finished_folder(
    real_hub: Any, prefect_api: str, tmp_path_factory: pytest.TempPathFactory, folder_bytes: list[int]
) -> Path:
    """The folder of the session after its last round."""
    from prefect.settings import PREFECT_API_URL, temporary_settings

    from flows.federated_session import federated_session
    from tasks.events import add_progress_listener

    out = tmp_path_factory.mktemp("so100")
    overrides = SMALL | {"output_dir": str(out / "outputs"), "cache_dir": str(out / "cache")}
    remove_listener = add_progress_listener(lambda _: folder_bytes.append(disk_bytes(out / "outputs")))
    try:
        with temporary_settings({PREFECT_API_URL: prefect_api}):
            return Path(federated_session(str(ROOT / "deployments/sessions/so100.toml"), overrides))
    finally:
        remove_listener()


def test_statistics_are_pooled_by_calibration_and_units(finished_folder: Path) -> None:
    setup = json.loads((finished_folder / "session_setup.json").read_text(encoding="utf-8"))
    new, old = setup["groups"]
    assert (new["calibration"], new["units"], new["clients"]) == ("pos", "normalized", ["so101-pickplace"])
    assert (old["calibration"], old["units"]) == ("main", "degrees")
    assert old["clients"] == ["pickplace", "stacking", "sorting"]
    assert len(new["evaluation_sets"]) == 3
    assert setup["statistics"] == new["statistics"]
    assert [old["statistics"]["state"]["count"], new["statistics"]["state"]["count"]] == [24, 8]


def test_datasets_of_an_older_format_take_part_as_repaired_copies(finished_folder: Path) -> None:
    setup = json.loads((finished_folder / "session_setup.json").read_text(encoding="utf-8"))
    found = {m["dataset"]: m["report"]["repairs"] for m in (*setup["members"], *setup["sets"])}
    converted = {name.removeprefix("hf:") for name, repairs in found.items() if "convert-to-v3" in repairs}
    assert converted == set(OLDER)
    assert len(found) == len(DATASETS)


def test_the_report_lists_the_groups(finished_folder: Path) -> None:
    page = (finished_folder / "report.html").read_text(encoding="utf-8")
    assert "pos-normalized (default)" in page
    assert "main-degrees" in page


@pytest.mark.parametrize(("where", "group"), [("", 0), ("statistics/main-degrees", 1)])
def test_lerobot_loads_the_policy_for_either_group(
    finished_folder: Path, real_hub: Any, where: str, group: int
) -> None:
    """A state of mean + std becomes 1, and an action of 1 becomes mean + std, in the units of the group."""
    from lerobot.policies.factory import make_pre_post_processors
    from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy

    folder = finished_folder / "models/checkpoint_round_1"
    policy = SmolVLAPolicy.from_pretrained(folder)
    pre, post = make_pre_post_processors(policy.config, str(folder / where))
    setup = json.loads((finished_folder / "session_setup.json").read_text(encoding="utf-8"))
    statistics = setup["groups"][group]["statistics"]
    state, action = (_mean_plus_std(Moments(**statistics[key])) for key in ("state", "action"))
    batch = pre({"observation.state": state, "task": "Pick up the cube"})
    torch.testing.assert_close(batch["observation.state"].cpu(), torch.ones(1, 6), atol=1e-4, rtol=0)
    torch.testing.assert_close(post(torch.ones(1, 6)), action[None], atol=1e-3, rtol=1e-5)
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "cp statistics/main-degrees/policy_* ." in card


def test_the_language_models_own_weights_are_not_fetched(finished_folder: Path, real_hub: Any) -> None:
    """The policy's file overwrites all of them; the Hub of this test does not even have them."""
    assert real_hub.count_requests(r"SmolVLM2.*config\.json") > 0
    assert real_hub.count_requests(r"SmolVLM2.*(safetensors|\.bin)") == 0


def test_the_saved_policy_names_no_device_and_the_shapes_of_its_cameras(finished_folder: Path) -> None:
    config = json.loads((finished_folder / "models/checkpoint_round_1/config.json").read_text(encoding="utf-8"))
    assert config["device"] is None
    assert config["load_vlm_weights"] is False
    shapes = {key: f["shape"] for key, f in config["input_features"].items() if f["type"] == "VISUAL"}
    assert shapes == {f"observation.images.camera{n}": [3, SIDE, SIDE] for n in (1, 2)}


def test_the_network_session_differs_only_in_its_clients_and_messages() -> None:
    from zk0.settings.loading import load_session

    local, network = (load_session(ROOT / f"deployments/sessions/{name}.toml") for name in ("so100", "so100-network"))
    assert network.federation.engine == "deployment"
    assert network.clients == ()
    changed = {name for name in type(local).model_fields if getattr(local, name) != getattr(network, name)}
    assert changed == {"name", "clients", "federation"}


@pytest.mark.parametrize(("optional", "count"), [(False, 3), (True, 6)])
def test_optional_evaluation_sets_are_used_by_one_setting(real_hub: Any, tmp_path: Path, optional: bool, count: int):
    from flows.session_loading import check_session_inputs, load_session_to_run

    overrides = {"evaluation.optional_datasets": optional, "cache_dir": str(tmp_path / "cache")}
    for name in ("so100", "so100-network"):
        session = load_session_to_run(ROOT / f"deployments/sessions/{name}.toml", overrides)
        sets = session.evaluation_sets()
        assert len(sets) == count
        assert {one.dataset.removeprefix("hf:") for one in sets if one.optional} == (
            set(OPTIONAL) if optional else set()
        )
        check_session_inputs(session)


def _mean_plus_std(moments: Moments) -> torch.Tensor:
    return torch.tensor(moments.mean) + torch.tensor(moments.std)


def test_disk_use_stays_within_what_the_log_says(finished_folder: Path, folder_bytes: list[int]) -> None:
    log = (finished_folder / "simulation.log").read_text(encoding="utf-8")
    said = re.search(r"disk: up to (\d+) MB in .* \((\d+) MB stay\), up to (\d+) MB in the cache", log)
    peak, session, cache = said.groups()
    assert len(folder_bytes) > 10
    assert 0.1 < max(folder_bytes) / (int(peak) * 1e6) < 1
    assert 0.1 < disk_bytes(finished_folder) / (int(session) * 1e6) < 1
    assert 0.05 < disk_bytes(finished_folder.parents[1] / "cache") / (int(cache) * 1e6) < 1


def disk_bytes(folder: Path) -> int:
    """Bytes of all files, each once, however many names it has."""
    found = {}
    for file in folder.rglob("*"):
        with suppress(FileNotFoundError):  # a temporary file that has its name now
            state = file.stat()
            found[state.st_ino] = state.st_size if file.is_file() else 0
    return sum(found.values())

"""Faults of a session that the metadata of its datasets shows, before any data is fetched."""

import json
from pathlib import Path
from typing import Any

import pytest
from hub_state import Hub, Repository
from published_hub import DATASETS

from zk0.data.check import metadata_check
from zk0.data.check.metadata_check import fault_list
from zk0.settings.loading import load_session
from zk0.settings.session import Session
from zk0.simulator.tasks import describe_recordings

SO100 = Path(__file__).parents[3] / "deployments/sessions/so100.toml"
EVALUATION_SETS = ("choyf3/so101_test_20250908", "griffinlabs/record-trial-2", "JamesChen007/so101-test")


@pytest.fixture
def hub_of_infos(hub_server: Hub, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """A Hub whose datasets hold nothing but meta/info.json."""
    import huggingface_hub.constants as constants

    monkeypatch.setenv("HF_TOKEN", hub_server.token)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub_server.url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    for name, (robot, arm, cameras) in DATASETS.items():
        publish(hub_server, name, {"robot_type": robot, "joints": arm[0], "cameras": cameras})
    return hub_server


def publish(hub: Hub, name: str, changes: dict[str, Any]) -> None:
    facts = {"version": "v3.0", "fps": 30, "episodes": 50} | changes
    numbers = {"dtype": "float32", "shape": [len(facts["joints"])], "names": list(facts["joints"])}
    images = {f"observation.images.{c}": {"dtype": "video", "shape": [480, 640, 3]} for c in facts["cameras"]}
    info = {
        "codebase_version": facts["version"], "fps": facts["fps"], "robot_type": facts["robot_type"],
        "total_episodes": facts["episodes"], "features": {"observation.state": numbers, "action": numbers, **images},
    }  # fmt: skip
    hub.repositories[f"datasets/{name}"] = repository = Repository(private=False)
    repository.commit("info", {"meta/info.json": json.dumps(info).encode(), "videos/large.mp4": b"not to be fetched"})


def metadata_faults(session: Session) -> dict[str, list[str]]:
    return metadata_check.metadata_faults(session, describe_recordings)


@pytest.fixture
def so100(tmp_path: Path) -> Session:
    return load_session(SO100, {"cache_dir": str(tmp_path)})


def test_so100_has_no_fault_and_only_metadata_is_fetched(hub_of_infos: Hub, so100: Session) -> None:
    assert {subject: faults for subject, faults in metadata_faults(so100).items() if faults} == {}
    fetched = [request.split("/resolve/main/")[1] for request in hub_of_infos.requests if request.startswith("GET")]
    assert fetched == ["meta/info.json"] * 7


def test_units_that_only_the_values_can_tell_are_no_fault(hub_of_infos: Hub, so100: Session) -> None:
    contract = so100.contract.model_copy(update={"other_groups": False, "cameras": ()})
    new = DATASETS[EVALUATION_SETS[0]][1][0]
    for client in so100.clients:
        publish(
            hub_of_infos, client.dataset.removeprefix("hf:"), {"robot_type": "so101", "joints": new, "cameras": ["a"]}
        )
    clients = tuple(c.model_copy(update={"rename_map": {}, "units": None}) for c in so100.clients)
    faults = metadata_faults(so100.model_copy(update={"contract": contract, "clients": clients}))
    assert {subject: found for subject, found in faults.items() if found and "client" in subject} == {}


def test_all_faults_of_all_datasets_are_listed_at_once(hub_of_infos: Hub, so100: Session) -> None:
    old, new = DATASETS["lerobot/svla_so100_pickplace"][1][0], DATASETS[EVALUATION_SETS[0]][1][0]
    arm = {"robot_type": "so100"}
    so100 = so100.model_copy(update={"data": so100.data.model_copy(update={"repair": "refuse"})})
    publish(hub_of_infos, EVALUATION_SETS[0], arm | {"joints": new, "cameras": ("front", "wrist"), "version": "v2.1"})
    publish(hub_of_infos, EVALUATION_SETS[1], arm | {"joints": new, "cameras": ("up", "phone"), "fps": 15})
    publish(
        hub_of_infos, "lerobot/svla_so100_sorting", arm | {"joints": old, "cameras": ("top", "wrist"), "episodes": 1}
    )
    del hub_of_infos.repositories[f"datasets/{EVALUATION_SETS[2]}"]
    found = {subject: faults for subject, faults in metadata_faults(so100).items() if faults}
    assert list(found) == [
        "hf:lerobot/svla_so100_sorting (client sorting)", *(f"hf:{n} (evaluation set)" for n in EVALUATION_SETS),
        "frames per second",
    ]  # fmt: skip
    assert found["hf:lerobot/svla_so100_sorting (client sorting)"] == ["1 episodes, expected at least 2"]
    assert (
        "zk0 data repair hf:choyf3/so101_test_20250908 FOLDER" in found[f"hf:{EVALUATION_SETS[0]} (evaluation set)"][0]
    )
    (rename, camera) = found[f"hf:{EVALUATION_SETS[1]} (evaluation set)"]
    assert "observation.images.laptop, which the dataset does not have" in rename
    assert "map observation.images.up -> observation.images.camera1 in rename_map" in camera
    assert "cannot be fetched from the Hub" in found[f"hf:{EVALUATION_SETS[2]} (evaluation set)"][0]
    assert found["frames per second"][0].startswith(f"hf:{EVALUATION_SETS[1]} (evaluation set) at 15 fps")
    lines = fault_list("so100: 6 faults", found).splitlines()
    assert len(lines) == 1 + 5 + 6


def test_an_older_format_is_no_fault_where_a_repaired_copy_may_take_part(hub_of_infos: Hub, so100: Session) -> None:
    for name in ("lerobot/svla_so100_sorting", EVALUATION_SETS[0]):
        robot, arm, cameras = DATASETS[name]
        publish(hub_of_infos, name, {"robot_type": robot, "joints": arm[0], "cameras": cameras, "version": "v2.1"})
    assert not any(metadata_faults(so100).values())
    sorting = so100.clients[2].model_copy(update={"allow_repair": False})
    own = so100.model_copy(update={"clients": (*so100.clients[:2], sorting, so100.clients[3])})
    assert [s for s, faults in metadata_faults(own).items() if faults] == [
        "hf:lerobot/svla_so100_sorting (client sorting)"
    ]
    refusing = so100.model_copy(update={"data": so100.data.model_copy(update={"repair": "refuse"})})
    found = {subject: faults for subject, faults in metadata_faults(refusing).items() if faults}
    assert len(found) == 2
    assert all('set data.repair = "repair"' in fault for (fault,) in found.values())


def test_units_that_only_values_tell_are_no_fault_yet(hub_of_infos: Hub, so100: Session) -> None:
    client = so100.clients[3].model_copy(update={"units": None})
    session = so100.model_copy(update={"clients": (*so100.clients[:3], client)})
    assert not any(metadata_faults(session).values())


def test_an_evaluation_set_of_no_clients_group_is_a_fault(hub_of_infos: Hub, so100: Session) -> None:
    only_old = so100.model_copy(update={"clients": so100.clients[:3]})
    found = {subject: faults for subject, faults in metadata_faults(only_old).items() if faults}
    assert list(found) == [f"hf:{name} (evaluation set)" for name in EVALUATION_SETS]
    assert all("in normalized, and no client whose" in fault for (fault,) in found.values())
    assert all(fault.endswith("a client's group: main-degrees") for (fault,) in found.values())
    pos = so100.clients[3].model_copy(update={"units": None})  # its values may turn out to be in these units
    assert not any(metadata_faults(so100.model_copy(update={"clients": (pos, *so100.clients[:3])})).values())


def test_simulated_datasets_are_described_before_they_are_recorded(hub_of_infos: Hub, so100: Session) -> None:
    places = ("sim:lift-pink", "sim:lift-red")
    clients = tuple(so100.clients[3].model_copy(update={"name": p[-3:], "dataset": p}) for p in places)
    found = metadata_faults(so100.model_copy(update={"clients": (*so100.clients, *clients)}))
    assert "simulated task 'lift-pink' does not exist" in found["sim:lift-pink (client ink)"][0]
    (rename, *cameras) = found["sim:lift-red (client red)"]
    assert "observation.images.up, observation.images.side, which the dataset does not have" in rename
    assert len(cameras) == 2
    assert found["frames per second"][0].startswith("sim:lift-red (client red) at 10 fps; expected 30 fps")

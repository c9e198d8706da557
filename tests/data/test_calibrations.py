"""Known joint names of SO arms, and the published datasets that so100.toml names."""

import json
from pathlib import Path

import numpy as np
import pytest

from zk0.data.calibrations import CALIBRATIONS, recognize_calibration
from zk0.data.check.contract_rules import check_contract, with_contract
from zk0.data.dataset_info import DatasetInfo, camera_name
from zk0.data.units import gripper_mask, infer_units
from zk0.records import DatasetReport
from zk0.settings.loading import load_session

ROOT = Path(__file__).parents[2]
PUBLISHED = Path(__file__).parent / "published"


def published_report(name: str) -> DatasetReport:
    """What a check reports of a published dataset, from its metadata alone; units from its statistics."""
    info = DatasetInfo.model_validate_json((PUBLISHED / f"{name}.json").read_text(encoding="utf-8"))
    statistics, units = PUBLISHED / f"{name}_stats.json", None
    names = info.features["observation.state"].flat_names
    if statistics.is_file():
        stated = json.loads(statistics.read_text(encoding="utf-8"))
        ends = np.array([stated[key][end] for key in ("observation.state", "action") for end in ("min", "max")])
        units = infer_units(ends, gripper_mask(names, 6, so_arm=True))
    return DatasetReport(
        dataset=name, root="", fps=info.fps, robot_type=info.robot_type, cameras=tuple(map(camera_name, info.cameras)),
        state_names=names, action_names=info.features["action"].flat_names, units=units,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("name", "group"), [("svla_so100_pickplace", ("main", "degrees")), ("svla_so101_pickplace", ("pos", "normalized"))]
)
def test_so100_toml_fits_the_published_metadata(name: str, group: tuple[str, str]) -> None:
    session = load_session(ROOT / "deployments/sessions/so100.toml")
    (client,) = [one for one in session.clients if one.dataset == f"hf:lerobot/{name}"]
    report = published_report(name)
    assert check_contract(report, session.contract, client.rename_map, client.units) == ()
    grouped = with_contract(report, session.contract, client.rename_map, client.units)
    assert (grouped.calibration, grouped.units) == group


def test_the_sorting_arm_has_the_calibration_that_is_assumed() -> None:
    """Of this dataset only counts and the names of the action's joints were seen."""
    seen = json.loads((PUBLISHED / "svla_so100_sorting_action.json").read_text(encoding="utf-8"))
    known = recognize_calibration(seen["action_names"])
    assert known is not None
    assert (known.name, known.units) == ("main", "degrees")


def test_the_documented_table_is_that_of_the_code() -> None:
    page = (ROOT / "docs/so-arms.md").read_text(encoding="utf-8")
    for known in CALIBRATIONS:
        assert f"| `{known.name}` | {', '.join(f'`{joint}`' for joint in known.joints)} |" in page
        assert recognize_calibration(known.joints) is known
        assert recognize_calibration(known.joints[::-1]) is None

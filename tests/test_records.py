"""Every record refuses unknown fields, NaN and infinity, and is frozen."""

import importlib
import pkgutil
from pathlib import Path

import pytest
from pydantic import ValidationError

import zk0
from zk0.records import Moments, Record

MODULES = (
    "zk0.records",
    "zk0.settings.session",
    "zk0.storage.session_folder",
    "zk0.data.split",
    "zk0.audit.ledger",
    "zk0.aggregation.aggregate",
    "zk0.rules.round_decision",
)


def every_record() -> list[type[Record]]:
    """All subclasses of Record in zk0, tasks and flows, after importing their modules."""
    for name in (
        *MODULES,
        "zk0.federation.protocol.collect",
        "zk0.evaluation.global_model",
        "tasks.rounds",
        "tasks.events",
    ):
        importlib.import_module(name)
    for module in pkgutil.iter_modules([str(Path(zk0.__file__).parent)]):
        if not module.ispkg:
            importlib.import_module(f"zk0.{module.name}")
    found, waiting = [], [Record]
    while waiting:
        below = waiting.pop().__subclasses__()
        found += below
        waiting += below
    return sorted({r for r in found if r.__module__.split(".")[0] in ("zk0", "tasks", "flows")}, key=str)


def test_every_record_is_frozen_and_refuses_unknown_fields() -> None:
    records = every_record()
    names = {r.__name__ for r in records}
    known = {"Session", "RoundPlan", "Update", "RoundRecord", "SessionSetup", "EvaluationSet"}
    assert known | {"CollectedUpdates", "ProgressEvent"} <= names
    assert len(records) > 35
    for record in records:
        assert record.model_config["frozen"], record
        assert record.model_config["allow_inf_nan"] is False, record
        with pytest.raises(ValidationError) as found:
            record.model_validate({"no_such_field": 1})
        faults = {tuple(f["loc"]): f["type"] for f in found.value.errors()}
        assert faults[("no_such_field",)] == "extra_forbidden", record


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_numbers_are_finite(number: float) -> None:
    with pytest.raises(ValidationError, match="finite number"):
        Moments(count=1, mean=(number,), std=(1.0,), min=(0.0,), max=(0.0,))


def test_a_record_cannot_be_changed() -> None:
    moments = Moments(count=1, mean=(0.0,), std=(1.0,), min=(0.0,), max=(0.0,))
    with pytest.raises(ValidationError, match="frozen"):
        moments.count = 2  # type: ignore[misc]


def test_json_of_a_record_gives_the_record_again() -> None:
    moments = Moments(count=3, mean=(0.1, 1e-300), std=(1 / 3, 2.0), min=(-0.0, 0.0), max=(5e-324, 1e308))
    assert Moments.model_validate_json(moments.model_dump_json()) == moments

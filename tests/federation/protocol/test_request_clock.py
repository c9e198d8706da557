"""The clock and the disk limit of a node, on each kind of request, in process."""

import json
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ConfigRecord, Context, Message, Metadata, RecordDict

from zk0.errors import FederationError
from zk0.federation.flower.flower_message import WEIGHTS_PATH
from zk0.federation.protocol.client_app import flower_client_app
from zk0.federation.protocol.exchange import FEATURES, JOINING_REPORT, LOCAL_BASELINE, RECEIPTS
from zk0.federation.protocol.request_limits import LIMITS
from zk0.settings.dataset_settings import ClientSettings, SimulatorSettings
from zk0.settings.node_limits import NodeLimits
from zk0.settings.plans import (
    ClientPlan,
    EvaluationPlan,
    FeaturePlan,
    JoiningReportPlan,
    RoundPlan,
    SessionTerms,
    VideoPlan,
)
from zk0.settings.training_settings import SchedulerSettings

NO_FEATURES = {"features": "off", "local_steps": 2, "batch_size": 8}
LIMITED = {"min_round_frames": 1, "min_statistics_episodes": 1}


def answer(kind: str, config: dict[str, Any], **request: str) -> dict[str, Any]:
    metadata = Metadata(1, "x", 1, 2, "", "g", time.time(), 60, kind)
    message = Message(content=RecordDict({"config": ConfigRecord(request)}), metadata=metadata)
    return dict(flower_client_app(message, Context(1, 1, config, RecordDict(), {})).content["answer"])


class Asked:
    """Requests of a session to a node with dataset a."""

    def __init__(self, make: Callable[..., RoundPlan], start: tuple[Path, str], config: dict[str, Any]) -> None:
        self.round, self._start, self.config = make(NO_FEATURES), start, config
        self._common = {name: getattr(self.round, name) for name in ClientPlan.model_fields}
        evaluated = {**self._common, "times": 2, "batch_size": 8, "every_frames": 1}
        self.evaluation = EvaluationPlan(**evaluated)
        self.joining = JoiningReportPlan(**evaluated, lrs=(1e-3,), scheduler=SchedulerSettings())
        self.features = FeaturePlan(
            **self._common | {"training": self.round.training.model_copy(update={"features": "embeddings"})},
            every_frames=1,
        )

    def answer(self, kind: str, plan: ClientPlan, **limits: Any) -> dict[str, Any]:
        return answer(
            kind,
            self.config | {LIMITS: NodeLimits(**LIMITED | limits).model_dump_json()},
            plan=plan.model_dump_json(),
            **{WEIGHTS_PATH: str(self._start[0])},
        )


@pytest.fixture
def asked(
    plan: Callable[..., RoundPlan], start: tuple[Path, str], recordings: dict[str, Path], tmp_path: Path
) -> Asked:
    (tmp_path / "scratch").mkdir()
    dataset = ClientSettings(name="a", dataset=f"local:{recordings['a']}").model_dump_json()
    return Asked(
        plan, start, {"client": dataset, "scratch": str(tmp_path / "scratch"), "cache": str(tmp_path / "cache")}
    )


LATE = {"max_round_hours": 1e-9}


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("train", "round"), ("evaluate", "evaluation"), (f"query.{FEATURES}", "features"),
        (f"evaluate.{LOCAL_BASELINE}", "joining"),
    ],
)  # fmt: skip
def test_work_that_takes_too_long_ends(kind: str, name: str, asked: Asked) -> None:
    found = asked.answer(kind, getattr(asked, name), **LATE)
    assert "a round of more than 1e-09 hours, at most that is allowed" in found["refusal"]
    assert "refusal" not in asked.answer(kind, getattr(asked, name))


def test_a_joining_report_that_takes_too_long_ends(asked: Asked) -> None:
    assert "done" in asked.answer(f"evaluate.{LOCAL_BASELINE}", asked.joining)
    assert "a round of more than" in asked.answer(f"evaluate.{JOINING_REPORT}", asked.joining, **LATE)["refusal"]
    assert "report" in asked.answer(f"evaluate.{JOINING_REPORT}", asked.joining)


def test_the_evaluations_of_a_joining_report_have_the_clock(asked: Asked, start: tuple[Path, str]) -> None:
    """The first evaluation comes before any optimizer step."""
    callers = list[str]()
    from zk0.client.joining_report import train_locally
    from zk0.federation.protocol.process_clients import client_for_plan

    def stop() -> None:
        callers.extend(frame.name for frame in traceback.extract_stack())
        raise FederationError("late")

    client = client_for_plan(asked.joining, asked.config)
    with pytest.raises(FederationError, match="late"):
        train_locally(client, asked.joining, start[0], stop)
    assert "score_policy" in callers


def test_few_frames_in_the_epochs_of_a_joining_report(asked: Asked) -> None:
    epochs = asked.joining.training.model_copy(update={"local_steps": None, "local_epochs": 1})
    plan = asked.joining.model_copy(update={"training": epochs})
    for kind in (LOCAL_BASELINE, JOINING_REPORT):
        found = asked.answer(f"evaluate.{kind}", plan, min_round_frames=256)
        assert "27 frames in the epochs of a round, at least 256 is allowed" in found["refusal"]


def test_a_video_that_takes_too_long_is_not_written(asked: Asked, start: tuple[Path, str], tmp_path: Path) -> None:
    from zk0.client.held_out_videos import render_held_out_videos
    from zk0.federation.protocol.process_clients import client_for_plan

    frames = list[None]()

    def stop() -> None:
        frames.append(None)
        if len(frames) > 4:
            raise FederationError("late")

    video = VideoPlan.model_validate({"episodes": 1, "camera_height": 64, "timestamp": "2026-01-01T00:00:00Z"})
    plan = asked.evaluation.model_copy(update={"video": video})
    client = client_for_plan(plan, asked.config)
    score = client.evaluate(plan, start[0]).score
    (found,) = render_held_out_videos(client, plan, start[0], score, stop)
    assert found.video is None
    assert "late" in str(found.video_error)
    assert len(frames) == 5
    assert not list(tmp_path.rglob("*.mp4"))
    (tmp_path / "scratch" / "evaluate").rename(tmp_path / "old")
    sent = asked.answer("evaluate", plan)
    assert "score" in sent
    assert list(tmp_path.rglob("scratch/**/*.mp4"))


@pytest.fixture
def simulated(tmp_path: Path, terms: SessionTerms) -> Callable[..., dict[str, Any]]:
    """Joins of a node whose dataset is simulated, with limits and simulator settings."""
    (tmp_path / "scratch").mkdir()

    def join(simulator: SimulatorSettings, **limits: Any) -> dict[str, Any]:
        config = {
            "client": ClientSettings(name="a", dataset="sim:lift-red").model_dump_json(),
            "scratch": str(tmp_path / "scratch"),
            "cache": str(tmp_path / "cache"),
            LIMITS: NodeLimits(**LIMITED | limits).model_dump_json(),
        }
        named = terms.model_copy(update={"session": f"s{simulator.first_seed}", "simulator": simulator})
        return answer("query", config, terms=named.model_dump_json())

    return join


def test_recordings_have_the_clock_and_count_as_disk_space(
    simulated: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    """A server that names other simulator settings each time fills the disk up to the limit only."""
    small = SimulatorSettings(episodes=2, image_size=32)
    assert "a round of more than" in simulated(small, **LATE)["refusal"]
    cached = tmp_path / "cache" / "demonstrations"
    assert not [folder for folder in cached.iterdir() if folder.is_dir()]
    assert "member" in simulated(small)
    assert len([folder for folder in cached.iterdir() if folder.is_dir()]) == 1
    other = small.model_copy(update={"first_seed": 5})
    refused = simulated(other, max_disk_gb=1e-6)["refusal"]
    assert "GB in this node's folder and recordings, at most 1e-06 is allowed" in refused
    assert len([folder for folder in cached.iterdir() if folder.is_dir()]) == 1


def test_receipts_are_counted(asked: Asked) -> None:
    config = asked.config | {LIMITS: NodeLimits(max_rounds_per_day=2).model_dump_json()}
    terms = asked.round.terms.model_dump_json()
    for _ in range(2):
        assert answer(f"query.{RECEIPTS}", config, terms=terms, receipts="[]") == {"checked": 0}
    found = answer(f"query.{RECEIPTS}", config, terms=terms, receipts="[]")
    assert "3 requests to store receipts in 24 hours, at most 2 is allowed" in found["refusal"]
    state = json.loads((Path(config["scratch"]) / "limits_state.json").read_text())
    assert len(state["requests"]["store receipts"]) == 2

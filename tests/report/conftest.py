"""A session of three rounds and four clients, and its report."""

from pathlib import Path
from typing import Any

import pytest
from four_arms_session import CLIENTS, DATASETS, VIDEO, member, round_record
from html_page import HtmlPage, read_page

from zk0.audit.ledger import Ledger
from zk0.records import Member, Rollout, RoundRecord
from zk0.report.page.session_page import write_session_report
from zk0.report.page.session_page_charts import SessionPageCharts, draw_session_page_charts
from zk0.report.setup_facts import SetupFacts
from zk0.settings.loading import parse_session, to_toml
from zk0.settings.session import Session


@pytest.fixture(scope="session")
def history() -> list[RoundRecord]:
    return [round_record(number) for number in range(4)]


@pytest.fixture(scope="session")
def members() -> list[Member]:
    return [member(index) for index in range(4)]


@pytest.fixture(scope="session")
def rollouts() -> list[Rollout]:
    common = {
        "conditions_digest": "c",
        "task": "place",
        "client": "place",
        "steps": 60,
        "duration_seconds": 2.0,
        "fps": 30.0,
    }
    base = [
        Rollout(round=0, checkpoint="0c" * 32, seed=s, success=False, smoothness=-4.0, **common)
        for s in range(9000, 9003)
    ]
    common |= {"round": 3, "checkpoint": "3c" * 32, "smoothness": -2.5}
    return [
        *base,
        Rollout(seed=9000, success=True, video="evaluate/round_3/rollout_a.mp4", **common),
        Rollout(seed=9001, success=False, video="evaluate/round_3/rollout_b.mp4", **common),
        Rollout(seed=9002, success=False, video_error="the encoder failed: no room", **common),
    ]


@pytest.fixture(scope="session")
def session() -> Session:
    return parse_session(
        {
            "name": "four-arms",
            "rounds": 3,
            "clients": [{"name": n, "dataset": d} for n, d in zip(CLIENTS, DATASETS, strict=True)],
            "evaluation": {"datasets": [{"dataset": "lab/so101-unseen"}, {"dataset": "sim:place-held-out"}]},
            "data": {"holdout_episodes": 2},
            "training": {"local_steps": 40},
            "rollout": {"tasks": ["place"], "seeds": [9000, 9001, 9002]},
        },
        "conftest",
    )


@pytest.fixture(scope="session")
def charts(session: Session, history: list[RoundRecord]) -> SessionPageCharts:
    return draw_session_page_charts(session, history)


@pytest.fixture(scope="session")
def report_folder(tmp_path_factory: pytest.TempPathFactory, members: list[Member], history: list[RoundRecord]) -> Path:
    """A session folder with its report, which tests only read."""
    return _session_folder(tmp_path_factory.mktemp("report"), members, history)


@pytest.fixture
def facts(
    session: Session,
    members: list[Member],
    history: list[RoundRecord],
    rollouts: list[Rollout],
    charts: SessionPageCharts,
) -> dict[str, Any]:
    lists = {"members": list(members), "history": list(history), "rollouts": list(rollouts)}
    return {"session": session, "charts": charts, **lists}


def _session_folder(path: Path, members: list[Member], history: list[RoundRecord]) -> Path:
    video = path / "evaluate" / "round_3" / "rollout_a.mp4"
    video.parent.mkdir(parents=True)
    video.write_bytes(VIDEO)
    setup = SetupFacts(
        members=tuple(members),
        statistics=members[0].statistics,
        normalization="policy",
        normalization_reason="base fits",
    )
    (path / "session_setup.json").write_text(setup.model_dump_json())
    for record in history:
        Ledger(path / "ledger.jsonl").append(record)
    return path


@pytest.fixture
def folder(tmp_path: Path, members: list[Member], history: list[RoundRecord]) -> Path:
    return _session_folder(tmp_path, members, history)


@pytest.fixture(scope="session")
def page(
    report_folder: Path,
    session: Session,
    members: list[Member],
    history: list[RoundRecord],
    rollouts: list[Rollout],
    charts: SessionPageCharts,
) -> HtmlPage:
    write_session_report(
        report_folder / "report.html",
        session=session,
        members=members,
        history=history,
        rollouts=rollouts,
        charts=charts,
        folder=report_folder,
        session_toml=to_toml(session),
    )
    return read_page(report_folder / "report.html")

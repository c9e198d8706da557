"""The report of a session, parsed again: its numbers against the records."""

import tomllib
from pathlib import Path
from typing import Any

import pytest
from html_page import HtmlPage, read_page

from zk0.audit.ledger import Ledger
from zk0.errors import ReportError
from zk0.records import Member, RoundRecord
from zk0.report.page.session_markdown import session_report_markdown
from zk0.report.page.session_page import write_session_report
from zk0.report.page.session_page_charts import draw_session_page_charts
from zk0.report.tables.client_tables import client_table
from zk0.report.tables.score_tables import evaluation_set_table
from zk0.report.tables.table import Cell
from zk0.rules.release import Release
from zk0.settings.loading import to_toml
from zk0.settings.session import Session


def test_conclusions_at_the_top(page: HtmlPage) -> None:
    assert "The loss on unseen data fell by 46 %." in page.text
    assert "down by 0.559 (95 % interval 0.539 to 0.579, paired over episodes)" in page.text
    assert "1 of 3 attempts succeeded (33 %; 95 % Wilson interval 6 % to 79 %)" in page.text
    assert page.text.index("fell by 46 %") < page.text.index("Loss and training")


def test_clients(page: HtmlPage) -> None:
    rows = {row["client"]: row for row in page.rows("Clients")}
    assert list(rows) == ["cloth", "lift", "place", "stack"]
    assert rows["cloth"] == {
        "client": "cloth",
        "dataset": "hf:lab/so101-cloth",
        "train episodes": "10",
        "held-out episodes": "2",
        "train frames": "2\u202f400",
        "held-out frames": "480",
        "first loss": "0.810",
        "last loss": "0.500",
        "update norm L2": "0.267",
        "cosine to mean": "0.900",
        "weight": "29.3 %",  # 2400 of 2400 + 3000 + 2800
        "share of delta": "–",
        "leave-one-out shift": "–",
        "rounds used": "3",
        "rejections": "0",
        "data quality": "clean",
    }
    # its update of round 3 was rejected: the last numbers are those of round 2
    assert rows["place"]["last loss"] == "0.710"
    assert rows["place"]["rounds used"] == "2"
    assert rows["place"]["rejections"] == "1"
    assert rows["place"]["dataset"] == "local:place"
    assert rows["lift"]["cosine to mean"] == "0.800"


def test_a_missing_cosine_is_a_dash(history: list[RoundRecord], members: list[Member]) -> None:
    rows = client_table(members, history[:2]).as_text()[1]
    assert [row[9] for row in rows] == ["0.900", "0.800", "0.700", "–"]


def test_held_out_frames_of_a_shared_dataset_are_missing(facts: dict[str, Any]) -> None:
    part = facts["members"][0].split.model_copy(update={"train": (0, 4, 8)})
    facts["members"][0] = facts["members"][0].model_copy(update={"split": part})
    assert client_table(facts["members"], facts["history"]).rows[0][5] == Cell(text="–", key=None)


def test_rounds(page: HtmlPage) -> None:
    rows = page.rows("Rounds")
    assert [r["round"] for r in rows] == ["0", "1", "2", "3"]
    losses, errors = ([r[head] for r in rows] for head in ("policy loss ± 95 %", "action error degrees, ± 95 %"))
    assert losses == ["1.214 ± 0.067", "0.902 ± 0.058", "–", "0.655 ± 0.047"]
    assert errors == ["21.40 ± 0.12", "14.20 ± 0.12", "–", "9.15 ± 0.12"]
    assert [r["lr"] for r in rows] == ["–", "0.0001", "8e-05", "5e-05"]
    assert [r["mu"] for r in rows] == ["–", "0.01", "0.01", "0.0105"]
    assert [r["lr factor"] for r in rows] == ["–", "1", "1", "0.95"]
    assert [r["updates used"] for r in rows] == ["–", "4", "4", "3"]
    assert [r["rejected"] for r in rows] == ["–", "0", "0", "1"]
    assert rows[2]["reason"] == "cosine; place × 1.15"
    assert rows[3]["reason"] == "stalled: x 0.95; spread of client losses above 1.2"


def test_cells_have_sort_keys(page: HtmlPage) -> None:
    losses = [row[1] for row in page.keys["Rounds"][1:]]
    assert losses == ["1.214", "0.902", "", "0.655"]
    lrs = [row[3] for row in page.keys["Rounds"][1:]]
    assert [float(k) for k in lrs if k] == [1e-4, 8e-5, 5e-5]


def test_refusals_sets_and_joints(page: HtmlPage) -> None:
    assert page.rows("Rejected updates") == [
        {"round": "3", "client": "place", "reason": "NaN in model.action_out_proj.weight"}
    ]
    first = page.rows("Evaluation sets")[0]
    assert first["policy loss ± 95 %, round 0"] == "1.114 ± 0.100"
    assert first["policy loss ± 95 %, round 3"] == "0.555 ± 0.070"
    assert first["action error degrees, ± 95 %, round 0"] == "19.40 ± 0.20"
    assert first["action error degrees, ± 95 %, round 3"] == "7.15 ± 0.20"
    joints = page.rows("Action error by joint, last evaluated round")[0]
    assert joints["shoulder pan degrees"] == "5.00"  # 0.7 * 7.15 = 5.005 in binary just below
    assert joints["gripper 0–100"] == "7.15"


def test_one_evaluated_round_has_one_column(session: Session, history: list[RoundRecord]) -> None:
    heads, rows = evaluation_set_table(session, history[:1]).as_text()
    assert heads[3:] == ("policy loss (± 95 %, round 0)", "action error (degrees, ± 95 %, round 0)", "unseen by")
    assert rows[0][3:] == ("1.114 ± 0.100", "19.40 ± 0.20", "–")


def test_statistics_and_digests(page: HtmlPage, report_folder: Path) -> None:
    assert "The statistics that the start policy carries (base fits)." in page.text
    row = page.rows("Statistics for normalization")[1]
    assert row["joint"] == "shoulder lift"
    assert row["state mean ± std"] == "3.00 ± 11.00"
    assert row["action min"] == "−36.50"
    assert [r["Digest of the global weights"] for r in page.rows("Weights")] == [f"{n}c" * 32 for n in range(4)]
    assert Ledger(report_folder / "ledger.jsonl").root() in page.text
    assert f"zk0 run --resume {report_folder}" in page.text


def test_success_by_task(page: HtmlPage) -> None:
    assert page.rows("Closed-loop success by task") == [
        {
            "task": "place",
            "trained by client": "place",
            "attempts": "3",
            "success round 0, 95 % Wilson": "0 (0 % to 56 %)",
            "success round 3, 95 % Wilson": "1 (6 % to 79 %)",
            "change percentage points, 95 % paired": "33 (−29 to 79)",
            "median time to success round 0, s, simulated": "–",
            "median time to success round 3, s, simulated": "2.0",
            "smoothness round 0, SPARC": "−4.00",
            "smoothness round 3, SPARC": "−2.50",
        }
    ]
    attempts = page.rows("Every closed-loop attempt")
    assert [(a["round"], a["seed"]) for a in attempts] == [(r, str(s)) for r in "03" for s in range(9000, 9003)]
    assert attempts[-1]["video"] == "the encoder failed: no room"


def test_settings_are_complete(page: HtmlPage, session: Session) -> None:
    settings = tomllib.loads(page.text[page.text.index('name = "four-arms"') :])
    assert settings == tomllib.loads(to_toml(session))


def test_the_page_is_reproducible(page: HtmlPage, facts: dict[str, Any], report_folder: Path, tmp_path: Path) -> None:
    assert page.tags
    text = to_toml(facts["session"])
    facts["charts"] = draw_session_page_charts(facts["session"], facts["history"])
    write_session_report(tmp_path / "again.html", folder=report_folder, session_toml=text, **facts)
    assert (tmp_path / "again.html").read_bytes() == (report_folder / "report.html").read_bytes()


def test_a_broken_setup_file_is_named(facts: dict[str, Any], folder: Path) -> None:
    (folder / "session_setup.json").write_text("{")
    with pytest.raises(ReportError, match=r"session_setup\.json"):
        write_session_report(folder / "report.html", folder=folder, session_toml="", **facts)
    assert not (folder / "report.html").exists()


def test_release(facts: dict[str, Any], tmp_path: Path) -> None:
    url = "https://huggingface.co/lab/arm/tree/r"
    made = Release(
        outcome="pushed", reason="20 rounds ran <b>", round=3, repo_id="lab/arm", private=True, revision="r", url=url
    )
    facts["rollouts"] = []
    text = session_report_markdown(**facts, release=made)
    assert "Release: pushed to private lab/arm as r: 20 rounds ran &lt;b&gt;." in text
    made.write(tmp_path / "release.json")
    write_session_report(tmp_path / "report.html", **facts, folder=tmp_path, session_toml="")
    page = read_page(tmp_path / "report.html")
    assert "Release: pushed to private lab/arm as r: 20 rounds ran <b>." in page.text
    assert ("a", {"href": url}) in page.tags

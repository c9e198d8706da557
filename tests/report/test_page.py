"""The report, read back: its numbers against the records, its safety against hostile text, its independence."""

import json
import re
import tomllib
from base64 import b64decode
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from zk0.errors import ReportError
from zk0.folder import toml_values
from zk0.ledger import Ledger
from zk0.records import EpisodeFilm, Member, Refusal, Rollout, RoundRecord
from zk0.release import Release
from zk0.report.client_tables import client_table
from zk0.report.page import report_markdown, write_report
from zk0.report.score_tables import set_table
from zk0.report.tables import Cell
from zk0.session import Session

VOID = {"meta", "link", "img", "source", "br", "hr", "input"}
VIDEO = b"not really a video, but carried byte by byte"


@dataclass
class Page(HTMLParser):
    """What a browser would find: tables by caption, text, requests, tags."""

    tables: dict[str, list[list[str]]] = field(default_factory=dict)
    keys: dict[str, list[list[str]]] = field(default_factory=dict)
    tags: list[tuple[str, dict[str, str | None]]] = field(default_factory=list)
    text: str = ""

    def __post_init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self._open: list[str] = []
        self._caption = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.tags.append((tag, given))
        if tag not in VOID:
            self._open.append(tag)
        if tag == "tr" and self._caption:
            self.tables[self._caption].append([])
            self.keys[self._caption].append([])
        if tag in ("td", "th") and self._caption:
            self.tables[self._caption][-1].append("")
            self.keys[self._caption][-1].append(given.get("data-key") or "")

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag, f"</{tag}> closes another element"
        if tag == "table":
            self._caption = ""

    def handle_data(self, data: str) -> None:
        if "style" in self._open or "script" in self._open:
            return
        self.text += data
        if "caption" in self._open:
            self._caption = data
            self.tables[data], self.keys[data] = [], []
        elif self._caption and ("td" in self._open or "th" in self._open):
            self.tables[self._caption][-1][-1] += data

    def rows(self, caption: str) -> list[dict[str, str]]:
        head, *body = self.tables[caption]
        assert all(len(row) == len(head) for row in body)
        return [dict(zip((" ".join(h.split()) for h in head), row, strict=True)) for row in body]


def read(path: Path) -> Page:
    page = Page()
    page.feed(path.read_text(encoding="utf-8"))
    page.close()
    assert page._open == []
    return page


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory, members: list[Member], history: list[RoundRecord]) -> Path:
    """A session's folder with its report, which tests only read."""
    return _folder(tmp_path_factory.mktemp("told"), members, history)


@pytest.fixture
def facts(
    session: Session, members: list[Member], history: list[RoundRecord], rollouts: list[Rollout]
) -> dict[str, Any]:
    return {"session": session, "members": list(members), "history": list(history), "rollouts": list(rollouts)}


def _folder(path: Path, members: list[Member], history: list[RoundRecord]) -> Path:
    video = path / "evaluate" / "round_3" / "rollout_a.mp4"
    video.parent.mkdir(parents=True)
    video.write_bytes(VIDEO)
    statistics = members[0].statistics.model_dump(mode="json")
    (path / "ground.json").write_text(json.dumps({"statistics": statistics}))
    for record in history:
        Ledger(path / "ledger.jsonl").append(record)
    return path


@pytest.fixture
def folder(tmp_path: Path, members: list[Member], history: list[RoundRecord]) -> Path:
    return _folder(tmp_path, members, history)


@pytest.fixture(scope="module")
def page(
    told: Path, session: Session, members: list[Member], history: list[RoundRecord], rollouts: list[Rollout]
) -> Page:
    write_report(
        told / "report.html",
        session=session,
        members=members,
        history=history,
        rollouts=rollouts,
        folder=told,
        session_toml=tomli_w.dumps(toml_values(session)),
    )
    return read(told / "report.html")


def test_verdict_on_top(page: Page) -> None:
    assert "The loss on unseen data fell by 46 %." in page.text
    assert "down by 0.559 (95 % interval 0.539 to 0.579, paired over episodes)" in page.text
    assert "1 of 3 attempts succeeded (33 %; 95 % Wilson interval 6 % to 79 %)" in page.text
    assert page.text.index("fell by 46 %") < page.text.index("Loss and training")


def test_clients(page: Page) -> None:
    rows = {row["client"]: row for row in page.rows("Clients")}
    assert list(rows) == ["cloth", "lift", "place", "stack"]
    assert rows["cloth"] == {
        "client": "cloth",
        "data set": "hf:lab/so101-cloth",
        "train episodes": "10",
        "held-out episodes": "2",
        "train frames": "2\u202f400",
        "held-out frames": "480",
        "first loss": "0.810",
        "last loss": "0.500",
        "update norm L2": "0.267",
        "cosine to mean": "0.900",
        "weight": "29.3 %",  # 2400 of 2400 + 3000 + 2800
        "part of the step": "–",
        "without it": "–",
        "rounds used": "3",
        "refusals": "0",
    }
    # its update of round 3 was refused: the last numbers are those of round 2
    assert rows["place"]["last loss"] == "0.710"
    assert rows["place"]["rounds used"] == "2"
    assert rows["place"]["refusals"] == "1"
    assert rows["place"]["data set"] == "local:place"
    assert rows["lift"]["cosine to mean"] == "0.800"


def test_a_cosine_without_a_number_is_a_dash(history: list[RoundRecord], members: list[Member]) -> None:
    rows = client_table(members, history[:2]).plain()[1]
    assert [row[9] for row in rows] == ["0.900", "0.800", "0.700", "–"]


def test_held_out_frames_of_a_shared_data_set_are_not_guessed(facts: dict[str, Any]) -> None:
    part = facts["members"][0].split.model_copy(update={"train": (0, 4, 8)})
    facts["members"][0] = facts["members"][0].model_copy(update={"split": part})
    assert client_table(facts["members"], facts["history"]).rows[0][5] == Cell(text="–", key=None)


def test_rounds(page: Page) -> None:
    rows = page.rows("Rounds")
    assert [r["round"] for r in rows] == ["0", "1", "2", "3"]
    loss = "policy loss ± 1.96 SE dimensionless"
    assert [r[loss] for r in rows] == ["1.214 ± 0.059", "0.902 ± 0.051", "–", "0.655 ± 0.041"]
    assert [r["lr"] for r in rows] == ["–", "0.0001", "8e-05", "5e-05"]
    assert [r["mu"] for r in rows] == ["–", "0.01", "0.01", "0.0105"]
    assert [r["lr factor"] for r in rows] == ["–", "1", "1", "0.95"]
    assert [r["updates used"] for r in rows] == ["–", "4", "4", "3"]
    assert [r["refused"] for r in rows] == ["–", "0", "0", "1"]
    assert rows[2]["why"] == "cosine; place × 1.15"
    assert rows[3]["why"] == "stalled: x 0.95; spread of client losses above 1.2"


def test_cells_carry_what_they_are_sorted_by(page: Page) -> None:
    losses = [row[1] for row in page.keys["Rounds"][1:]]
    assert losses == ["1.214", "0.902", "", "0.655"]
    lrs = [row[3] for row in page.keys["Rounds"][1:]]
    assert [float(k) for k in lrs if k] == [1e-4, 8e-5, 5e-5]


def test_refusals_sets_and_joints(page: Page) -> None:
    assert page.rows("Refused updates") == [
        {"round": "3", "client": "place", "reason": "NaN in model.action_out_proj.weight"}
    ]
    first = page.rows("Evaluation sets")[0]
    assert first["policy loss ± 1.96 SE round 0"] == "1.114 ± 0.071"
    assert first["policy loss ± 1.96 SE round 3"] == "0.555 ± 0.049"
    assert first["action error degrees, round 0"] == "19.40"
    assert first["action error degrees, round 3"] == "7.15"
    joints = page.rows("Action error by joint, last judged round")[0]
    assert joints["shoulder pan degrees"] == "5.00"  # 0.7 * 7.15 = 5.005 in binary just below
    assert joints["gripper 0–100"] == "7.15"


def test_one_judged_round_has_no_column_for_another(session: Session, history: list[RoundRecord]) -> None:
    heads, rows = set_table(session, history[:1]).plain()
    assert heads[3:] == ("policy loss ± 1.96 SE (round 0)", "action error (degrees, round 0)")
    assert rows[0][3:] == ("1.114 ± 0.071", "19.40")


def test_statistics_and_digests(page: Page, told: Path) -> None:
    row = page.rows("Pooled statistics")[1]
    assert row["joint"] == "shoulder lift"
    assert row["state mean ± std"] == "3.00 ± 11.00"
    assert row["action min"] == "−36.50"
    assert [r["BLAKE3 of the global weights"] for r in page.rows("Weights")] == [f"{n}c" * 32 for n in range(4)]
    assert Ledger(told / "ledger.jsonl").root() in page.text
    assert f"zk0 run --resume {told}" in page.text


def test_success_by_task(page: Page) -> None:
    assert page.rows("Closed-loop success by task") == [
        {
            "task": "place",
            "trained on by": "place",
            "attempts": "3",
            "success round 0, 95 % Wilson": "0 (0 % to 56 %)",
            "success round 3, 95 % Wilson": "1 (6 % to 79 %)",
            "gain 95 % paired": "33 (−29 to 79 %)",
            "median time to success round 0, s, simulated": "–",
            "median time to success round 3, s, simulated": "2.0",
            "smoothness round 0, SPARC": "−4.00",
            "smoothness round 3, SPARC": "−2.50",
        }
    ]
    attempts = page.rows("Every closed-loop attempt")
    assert [(a["round"], a["seed"]) for a in attempts] == [(r, str(s)) for r in "03" for s in range(9000, 9003)]
    assert attempts[-1]["film"] == "the encoder failed: no room"


def test_settings_are_complete(page: Page, session: Session) -> None:
    settings = tomllib.loads(page.text[page.text.index('name = "four-arms"') :])
    assert settings == json.loads(json.dumps(toml_values(session)))


def test_videos_travel_with_the_page(page: Page) -> None:
    videos = [attrs["src"] for tag, attrs in page.tags if tag == "video"]
    assert len(videos) == 1  # the second file is missing, the third was never made
    assert videos[0] is not None
    assert b64decode(videos[0].removeprefix("data:video/mp4;base64,")) == VIDEO
    assert page.text.count("no film") == 2
    assert "no film: the encoder failed: no room" in page.text


def test_films_of_unseen_episodes_are_shown_and_those_of_clients_stay(
    tmp_path: Path, members: list[Member], history: list[RoundRecord], session: Session
) -> None:
    folder = _folder(tmp_path, members, history)
    common = {"round": 3, "checkpoint": "3c" * 32, "duration_seconds": 2.0, "fps": 30, "action_error_degrees": 1.0}
    for number, client in enumerate((None, "cloth")):
        film = EpisodeFilm(
            dataset="local:/home/someone/set", client=client, episode=4, policy_loss=0.5,
            video=f"evaluate/round_3/rollout_{number}.mp4", **common,
        )  # fmt: skip
        (folder / str(film.video)).write_bytes(b"film of " + str(client).encode())
        (folder / str(film.video)).with_suffix(".json").write_text(film.model_dump_json())
    target = folder / "report.html"
    facts = {"session": session, "members": members, "history": history, "rollouts": []}
    write_report(target, **facts, folder=folder, session_toml="")
    page = read(target)
    (shown,) = [attrs["src"] for tag, attrs in page.tags if tag == "video"]
    assert b64decode(str(shown).removeprefix("data:video/mp4;base64,")) == b"film of None"
    assert "local:set · round 3 · episode 4 · 2.0 s · policy loss 0.500" in page.text


def test_nothing_is_requested_from_elsewhere(page: Page) -> None:
    asked = [
        value or ""
        for tag, attrs in page.tags
        for name, value in attrs.items()
        if name in ("src", "srcset", "href", "poster", "data", "action", "formaction", "background", "xlink:href")
    ]
    assert len(asked) > 10
    assert all(value.startswith(("data:", "#")) for value in asked)
    ids = {attrs.get("id") for _, attrs in page.tags}
    assert {value[1:] for value in asked if value.startswith("#")} <= ids


def test_styles_and_scripts_request_nothing(page: Page, told: Path) -> None:
    assert page.tags
    html = (told / "report.html").read_text(encoding="utf-8")
    for block in re.findall(r"<(?:style|script)>(.*?)</(?:style|script)>", html, flags=re.DOTALL):
        assert not re.search(r"url\(|@import|fetch|XMLHttp|https?:|//\w", block)


def test_charts_for_light_and_dark(page: Page) -> None:
    images = [attrs for tag, attrs in page.tags if tag == "img"]
    dark = [attrs for tag, attrs in page.tags if tag == "source"]
    assert len(images) == len(dark) == 5
    assert all(image["alt"] for image in images)
    for image, other in zip(images, dark, strict=True):
        assert other["media"] == "(prefers-color-scheme: dark)"
        assert image["src"] != other["srcset"]
        assert b64decode((image["src"] or "").partition(",")[2]).startswith(b"\x89PNG")


def test_tables_are_accessible(page: Page) -> None:
    heads = [attrs for tag, attrs in page.tags if tag == "th"]
    assert heads
    assert all(attrs.get("scope") in ("col", "row") for attrs in heads)
    assert sum(tag == "caption" for tag, _ in page.tags) == sum(tag == "table" for tag, _ in page.tags)


HOSTILE = "</script><script>alert(1)</script><img src=https://evil.example/x onerror=alert(2)>\"' {{ 7 * 7 }}"


def test_hostile_text_stays_text(facts: dict[str, Any], folder: Path) -> None:
    member, last = facts["members"][0], facts["history"][3]
    facts["members"] = [member.model_copy(update={"client": HOSTILE, "dataset": f"hf:{HOSTILE}"})]
    refused = last.model_copy(update={"refusals": (Refusal(client=HOSTILE, reason=HOSTILE),)})
    facts["history"] = [*facts["history"][:3], refused]
    facts["rollouts"] = [facts["rollouts"][0].model_copy(update={"task": HOSTILE})]
    facts["session"] = facts["session"].model_copy(update={"name": HOSTILE})
    write_report(folder / "report.html", folder=folder, session_toml=HOSTILE, **facts)
    page = read(folder / "report.html")
    assert sum(tag == "script" for tag, _ in page.tags) == 1
    assert all("onerror" not in attrs for _, attrs in page.tags)
    test_nothing_is_requested_from_elsewhere(page)
    assert page.rows("Refused updates")[0]["reason"] == HOSTILE
    assert page.rows("Clients")[0]["client"] == HOSTILE
    assert page.text.count("{{ 7 * 7 }}") >= 6


def test_a_session_with_nothing_to_show(session: Session, tmp_path: Path) -> None:
    write_report(
        tmp_path / "report.html",
        session=session,
        members=[],
        history=[],
        rollouts=[],
        folder=tmp_path,
        session_toml="",
    )
    page = read(tmp_path / "report.html")
    assert "Too little was measured" in page.text
    assert "No round is finished." in page.text
    assert "None" not in page.text
    assert "nan" not in page.text.lower().split()


def test_the_same_facts_make_the_same_page(page: Page, facts: dict[str, Any], told: Path, tmp_path: Path) -> None:
    assert page.tags
    text = tomli_w.dumps(toml_values(facts["session"]))
    write_report(tmp_path / "again.html", folder=told, session_toml=text, **facts)
    assert (tmp_path / "again.html").read_bytes() == (told / "report.html").read_bytes()


def test_broken_ground_is_told(facts: dict[str, Any], folder: Path) -> None:
    (folder / "ground.json").write_text("{")
    with pytest.raises(ReportError, match=r"ground\.json"):
        write_report(folder / "report.html", folder=folder, session_toml="", **facts)
    assert not (folder / "report.html").exists()


def test_markdown_says_the_same(facts: dict[str, Any]) -> None:
    text = report_markdown(**facts)
    assert len(text.encode()) < 1_000_000
    assert "The loss on unseen data fell by 46 %." in text
    assert "| 3 | 0.655 ± 0.041 | 9.15 | 5e-05 | 0.0105 | 0.95 | 3 | 1 |" in text
    assert "NaN in model.action\\_out\\_proj.weight" in text
    images = re.findall(r"!\[[^\]]+\]\(data:image/png;base64,([A-Za-z0-9+/=]+)\)", text)
    assert len(images) == 2
    assert all(b64decode(image).startswith(b"\x89PNG") for image in images)


def test_markdown_tables_keep_their_columns(facts: dict[str, Any]) -> None:
    bad = facts["history"][3].model_copy(update={"refusals": (Refusal(client="a|b", reason="x\n| y | <b>`"),)})
    text = report_markdown(**{**facts, "history": [*facts["history"][:3], bad]})
    line = next(line for line in text.splitlines() if "a\\|b" in line and line.startswith("| 3"))
    assert len(re.findall(r"(?<!\\)\|", line)) == 4
    assert "&lt;b&gt;\\`" in line


def test_what_became_of_a_release(
    session: Session, members: list[Member], history: list[RoundRecord], tmp_path: Path
) -> None:
    url = "https://huggingface.co/lab/arm/tree/r"
    made = Release(
        outcome="pushed", reason="20 rounds ran <b>", round=3, repo_id="lab/arm", private=True, revision="r", url=url
    )
    text = report_markdown(session=session, members=members, history=history, rollouts=[], release=made)
    assert "Release: pushed to private lab/arm as r: 20 rounds ran &lt;b&gt;." in text
    made.keep(tmp_path / "release.json")
    write_report(
        tmp_path / "report.html", session=session, members=members, history=history, rollouts=[], folder=tmp_path,
        session_toml="",
    )  # fmt: skip
    page = read(tmp_path / "report.html")
    assert "Release: pushed to private lab/arm as r: 20 rounds ran <b>." in page.text
    assert ("a", {"href": url}) in page.tags

"""The report of a session, parsed again: videos, charts, hostile text, accessibility, no external resources."""

import re
from base64 import b64decode
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from four_arms_session import VIDEO
from html_page import HtmlPage, read_page
from PIL import Image

from flows.cli.program_name import program_name
from flows.cli.terminal import print_session_result
from zk0.records import EpisodeVideo, Refusal
from zk0.report.page.report_terms import REPORT_TERMS, term_id
from zk0.report.page.session_page import write_session_report
from zk0.report.page.session_page_charts import draw_session_page_charts
from zk0.report.video.encoder import write_video
from zk0.settings.loading import to_toml
from zk0.settings.session import Session
from zk0.storage.session_folder import SessionFolder


def test_videos_are_embedded_in_the_page(page: HtmlPage) -> None:
    videos = [attrs["src"] for tag, attrs in page.tags if tag == "video"]
    assert len(videos) == 1  # the second file is missing, the third was never made
    assert videos[0] is not None
    assert b64decode(videos[0].removeprefix("data:video/mp4;base64,")) == VIDEO
    assert page.text.count("no video") == 2
    assert "no video: the encoder failed: no room" in page.text


def test_videos_of_unseen_episodes_are_shown_and_those_of_clients_are_not(facts: dict[str, Any], folder: Path) -> None:
    common = {"round": 3, "checkpoint": "3c" * 32, "duration_seconds": 2.0, "fps": 30, "action_error_degrees": 1.0}
    for number, client in enumerate((None, "cloth")):
        video = EpisodeVideo(
            dataset="local:/home/someone/set", client=client, episode=4, policy_loss=0.5,
            video=f"evaluate/round_3/rollout_{number}.mp4", **common,
        )  # fmt: skip
        (folder / str(video.video)).write_bytes(b"video of " + str(client).encode())
        (folder / str(video.video)).with_suffix(".json").write_text(video.model_dump_json())
    target = folder / "report.html"
    facts["rollouts"] = []
    write_session_report(target, **facts, folder=folder, session_toml="")
    page = read_page(target)
    (shown,) = [attrs["src"] for tag, attrs in page.tags if tag == "video"]
    assert b64decode(str(shown).removeprefix("data:video/mp4;base64,")) == b"video of None"
    assert "local:set · round 3 · episode 4 · 2.0 s · policy loss 0.500" in page.text


def test_the_same_attempt_before_and_after_training_comes_first(facts: dict[str, Any], folder: Path) -> None:
    """Of the attempts with videos of both models, the one that succeeds only now; until it plays, its last frame."""
    shades = {(0, 9000): 40, (0, 9001): 80, (3, 9000): 120, (3, 9001): 200}
    attempts = []
    for (number, seed), shade in shades.items():
        name = f"evaluate/round_{number}/rollout_{seed}.mp4"
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        frames = [np.full((48, 64, 3), value, np.uint8) for value in (0, 0, shade)]
        write_video(folder / name, partial(list, frames), 10)
        attempt = facts["rollouts"][0 if number == 0 else 3].model_copy(update={"seed": seed, "video": name})
        attempts.append(attempt.model_copy(update={"success": (number, seed) != (0, 9001)}))
    facts["rollouts"] = attempts
    write_session_report(folder / "report.html", folder=folder, session_toml="", **facts)
    page = read_page(folder / "report.html")
    videos = [attrs for tag, attrs in page.tags if tag == "video"]
    assert len(videos) == 2 + 4
    assert all({"muted", "poster", "controls"} <= video.keys() for video in videos)
    for shown, shade in zip(videos[:2], (80, 200), strict=True):
        with Image.open(BytesIO(b64decode(str(shown["poster"]).removeprefix("data:image/jpeg;base64,")))) as poster:
            assert poster.size == (64, 48)
            assert abs(np.asarray(poster).mean() - shade) < 8
    titles = [page.text.index(text) for text in ("before training", "now ·", "Policy loss on unseen data")]
    assert titles == sorted(titles)


def test_the_arm_now_is_that_of_the_sessions_policy(facts: dict[str, Any], folder: Path) -> None:
    """Here the best round, which is not the last one."""
    attempts = []
    for number, success in ((0, False), (2, True), (3, False)):
        name = f"evaluate/round_{number}/rollout.mp4"
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_video(folder / name, lambda: [np.full((48, 64, 3), 80, np.uint8)] * 3, 10)
        change = {"round": number, "checkpoint": f"{number}c" * 32, "success": success, "video": name}
        attempts.append(facts["rollouts"][0].model_copy(update=change))
    facts |= {"rollouts": attempts, "session": facts["session"].model_copy(update={"selection": "best"})}
    write_session_report(folder / "report.html", folder=folder, session_toml="", **facts)
    text = " ".join(read_page(folder / "report.html").text.split())
    assert "before training · place · round 0" in text
    assert "now · place · round 2" in text
    assert "The best round was 2 of 3." in text


def test_commands_with_the_policy(facts: dict[str, Any], folder: Path) -> None:
    SessionFolder(folder).checkpoint(3).mkdir(parents=True)
    session = facts["session"]
    write_session_report(folder / "report.html", folder=folder, session_toml="", **facts)
    text = read_page(folder / "report.html").text
    assert f"zk0 arm run {folder}/models/checkpoint_round_3 --port /dev/ttyACM0 --camera overhead=0" in text
    assert f"zk0 push {folder} --repo-id USER/NAME" in text
    assert f"zk0 run --from {folder}" in text
    assert ("zk0 rollout" in text) == bool(session.rollout.tasks)


def test_the_end_of_a_run_shows_the_next_commands(
    facts: dict[str, Any], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    here = SessionFolder(folder)
    here.session_toml.write_text(to_toml(facts["session"]))
    here.checkpoint(3).mkdir(parents=True)
    print_session_result(folder)
    lines = capsys.readouterr().out.splitlines()
    zk0 = program_name()
    arm, attempts = (next(line for line in lines if line.startswith(f"{zk0} {name}")) for name in ("arm", "rollout"))
    policy = f"{folder}/models/checkpoint_round_3"
    assert arm.startswith(f"{zk0} arm run {policy} --port /dev/ttyACM0 --camera overhead=0 ")
    assert arm.endswith(f' --task "{facts["members"][0].report.tasks[0]}"'), "a text that the policy was trained with"
    assert attempts == f"{zk0} rollout {policy} --out attempts --task place --seeds 9000-9019"


def test_terms_are_explained_where_they_stand(page: HtmlPage) -> None:
    explained = {str(attrs["title"]) for tag, attrs in page.tags if tag == "abbr"}
    buttons = [attrs for tag, attrs in page.tags if tag == "button" and "popovertarget" in attrs]
    notes = {str(attrs["id"]) for tag, attrs in page.tags if "popover" in attrs}
    assert len(buttons) == len([tag for tag, _ in page.tags if tag == "abbr"]) > 20, "each can be tapped, too"
    assert {str(button["popovertarget"]) for button in buttons} <= notes == {term_id(term) for term in REPORT_TERMS}
    assert all(f"{term}: {meaning}" in page.text for term, meaning in REPORT_TERMS.items())
    assert {REPORT_TERMS[term] for term in ("round", "policy loss", "update norm", "cosine to mean")} <= explained
    glossary = (Path(__file__).parents[2] / "docs/glossary.md").read_text(encoding="utf-8").splitlines()
    assert [term for term, meaning in REPORT_TERMS.items() if f"| {term} | {meaning} |" not in glossary] == []


def test_no_external_resource_is_loaded(page: HtmlPage) -> None:
    urls = [
        value or ""
        for tag, attrs in page.tags
        for name, value in attrs.items()
        if name in ("src", "srcset", "href", "poster", "data", "action", "formaction", "background", "xlink:href")
    ]
    assert len(urls) > 10
    assert all(value.startswith(("data:", "#")) for value in urls)
    ids = {attrs.get("id") for _, attrs in page.tags}
    assert {value[1:] for value in urls if value.startswith("#")} <= ids


def test_styles_and_scripts_load_nothing(page: HtmlPage, report_folder: Path) -> None:
    assert page.tags
    html = (report_folder / "report.html").read_text(encoding="utf-8")
    for block in re.findall(r"<(?:style|script)>(.*?)</(?:style|script)>", html, flags=re.DOTALL):
        assert not re.search(r"url\(|@import|fetch|XMLHttp|https?:|//\w", block)


def test_charts_for_light_and_dark(page: HtmlPage) -> None:
    images = [attrs for tag, attrs in page.tags if tag == "img"]
    dark = [attrs for tag, attrs in page.tags if tag == "source"]
    assert len(images) == len(dark) == 5
    assert all(image["alt"] for image in images)
    for image, other in zip(images, dark, strict=True):
        assert other["media"] == "(prefers-color-scheme: dark)"
        assert image["src"] != other["srcset"]
        assert b64decode((image["src"] or "").partition(",")[2]).startswith(b"\x89PNG")


def test_tables_are_accessible(page: HtmlPage) -> None:
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
    facts["charts"] = draw_session_page_charts(facts["session"], facts["history"])
    write_session_report(folder / "report.html", folder=folder, session_toml=HOSTILE, **facts)
    page = read_page(folder / "report.html")
    assert sum(tag == "script" for tag, _ in page.tags) == 1
    assert all("onerror" not in attrs for _, attrs in page.tags)
    test_no_external_resource_is_loaded(page)
    assert page.rows("Rejected updates")[0]["reason"] == HOSTILE
    assert page.rows("Clients")[0]["client"] == HOSTILE
    assert page.text.count("{{ 7 * 7 }}") >= 6


def test_a_session_with_nothing_to_show(session: Session, tmp_path: Path) -> None:
    write_session_report(
        tmp_path / "report.html",
        session=session,
        members=[],
        history=[],
        rollouts=[],
        charts=draw_session_page_charts(session, []),
        folder=tmp_path,
        session_toml="",
    )
    page = read_page(tmp_path / "report.html")
    assert "Fewer than two rounds were evaluated" in page.text
    assert "No round is finished." in page.text
    assert not {"rollouts", "tasks", "evaluation", "next"} & {attrs.get("id") for _, attrs in page.tags}
    assert "None" not in page.text
    assert "nan" not in page.text.lower().split()

"""The card of a saved policy: front matter that parses, numbers of the records, no path of this machine."""

import re
from typing import Any

import pytest
import yaml
from markdown_it import MarkdownIt

from zk0.errors import ReportError
from zk0.records import Member, RoundRecord
from zk0.report.card import model_card
from zk0.session import PolicySettings, Session


def _parts(card: str) -> tuple[dict[str, Any], str]:
    start, front, body = card.split("---\n", 2)
    assert start == ""
    return yaml.safe_load(front), body


def _rows(body: str, head: str) -> list[list[str]]:
    lines = body[body.index(f"| {head} ") :].split("\n\n")[0].splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_front_matter(session: Session, members: list[Member], history: list[RoundRecord]) -> None:
    front, _ = _parts(model_card(session, members, history))
    assert front["license"] == "apache-2.0"
    assert front["library_name"] == "lerobot"
    assert front["pipeline_tag"] == "robotics"
    assert front["base_model"] == "lerobot/smolvla_base"
    assert front["datasets"] == ["lab/so101-cloth", "lab/so101-lift"]
    assert {"lerobot", "smolvla", "federated-learning"} <= set(front["tags"])


def test_numbers_are_those_of_the_records(session: Session, members: list[Member], history: list[RoundRecord]) -> None:
    _, body = _parts(model_card(session, members, history))
    assert "four-arms, round 3" in body
    # 1.96 * 0.021 * 1.2 and 1.96 * 0.021 * 1.5
    assert _rows(body, "data set (unseen)") == [
        ["lab/so101-unseen", "5", "640", "0.555 ± 0.049", "7.15"],
        ["sim:place-held-out", "5", "640", "0.755 ± 0.062", "11.15"],
        ["mean over sets", "–", "–", "0.655 ± 0.041", "9.15"],
    ]
    assert "95 % interval 0.539 to 0.579, paired over episodes" in body
    assert _rows(body, "client")[0] == ["cloth", "hf:lab/so101-cloth", "10", "2\u202f400", "2", "cloth the red cube"]
    settings = dict(_rows(body, "setting"))
    assert settings["rounds"] == "3 of 3"
    assert settings["what is trained"] == "action expert and projections"
    assert settings["a client's work in a round"] == "40 optimizer steps"
    assert settings["learning rate"] == "0.0001 (last round 5e-05)"
    assert settings["FedProx mu"] == "0.01 (last round 0.0105)"
    assert _rows(body, "weights")[1] == ["round 3 (these)", "3c" * 32]


def test_adapters_are_told(session: Session, members: list[Member], history: list[RoundRecord]) -> None:
    adapted = session.training.model_copy(update={"adapter": "lora", "lora_rank": 8})
    _, body = _parts(model_card(session.model_copy(update={"training": adapted}), members, history))
    told = dict(_rows(body, "setting"))["what is trained"]
    assert told == "LoRA on the action expert's matrices, rank 8, alpha 32, dropout 0.1, merged into these weights"


def test_a_round_in_between_has_its_own_card(
    session: Session, members: list[Member], history: list[RoundRecord]
) -> None:
    _, body = _parts(model_card(session, members, history[:3]))
    assert "four-arms, round 2" in body
    assert "2 of 3 rounds" in body
    assert "This round was not judged." in body
    assert "0.655" not in body


def test_no_path_of_this_machine(session: Session, members: list[Member], history: list[RoundRecord]) -> None:
    elsewhere = session.model_copy(update={"policy": PolicySettings(path="/home/someone/policies/mine")})
    card = model_card(elsewhere, members, history)
    assert "/home" not in card
    assert "someone" not in card
    assert "local:place" in card
    assert "the folder mine" in card
    assert "base_model" not in _parts(card)[0]


def test_how_to_load(session: Session, members: list[Member], history: list[RoundRecord]) -> None:
    plain = model_card(session, members, history)
    assert "SmolVLAPolicy.from_pretrained(folder)" in plain
    assert "vlm" not in plain
    tiny = model_card(session.model_copy(update={"policy": PolicySettings(path="tiny")}), members, history)
    assert 'SmolVLAPolicy.from_pretrained(".")' in tiny
    assert 'cli_overrides=[f"--vlm_model_name={folder}/vlm"]' in tiny
    assert "base_model" not in _parts(tiny)[0]
    for card in (plain, tiny):
        for snippet in card.split("```python\n")[1:]:
            compile(snippet.split("```")[0], "card", "exec")


HOSTILE = "x\n---\nlicense: other\n# <script>alert(1)</script> | [a](javascript:b) ![c](https://evil.example/p.png)"


def test_hostile_names_stay_text(session: Session, members: list[Member], history: list[RoundRecord]) -> None:
    report = members[0].report.model_copy(update={"tasks": (HOSTILE,)})
    bad = members[0].model_copy(update={"client": HOSTILE, "dataset": f"hf:lab/{HOSTILE}", "report": report})
    named = session.model_copy(update={"name": HOSTILE, "policy": PolicySettings(path="tiny", revision=HOSTILE)})
    card = model_card(named, [bad, *members[1:]], history)
    front, body = _parts(card)
    assert front["license"] == "apache-2.0"
    assert front["datasets"] == ["lab/so101-lift"]
    assert card.count("\n---\n") == 1
    html = MarkdownIt("commonmark").enable("table").render(body)
    assert not re.search(r"<(script|a|img)\b", html)
    assert "https://evil" not in html
    assert html.count("<table>") == 4
    shown = " ".join(HOSTILE.split()).replace("https:", "https\u2060:")
    assert f"<td>{shown.replace('<', '&lt;').replace('>', '&gt;')}</td>" in html


def test_no_finished_round_is_refused(session: Session, members: list[Member]) -> None:
    with pytest.raises(ReportError, match="needs a finished round"):
        model_card(session, members, [])


def test_the_ledger_s_root_is_named(session: Session, members: list[Member], history: list[RoundRecord]) -> None:
    _, body = _parts(model_card(session, members, history, "ab" * 32))
    assert f"Root of the session's ledger with round 3 as its last: `{'ab' * 32}`" in body
    assert "ledger" not in _parts(model_card(session, members, history))[1]

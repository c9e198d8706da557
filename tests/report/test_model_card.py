"""The model card of a saved policy: front matter, numbers of the records, no path of this machine."""

import re
from typing import Any

import pytest
import yaml
from markdown_it import MarkdownIt

from zk0.errors import ReportError
from zk0.evaluation.statistics_groups import pool_groups
from zk0.records import Member, Rollout, RoundRecord, Statistics, StatisticsGroup
from zk0.report.model_card import CardProof, model_card
from zk0.settings.session import Session
from zk0.settings.training_settings import PolicySettings


def _parts(card: str) -> tuple[dict[str, Any], str]:
    start, front, body = card.split("---\n", 2)
    assert start == ""
    return yaml.safe_load(front), body


def _rows(body: str, heading: str) -> list[list[str]]:
    lines = body[body.index(f"| {heading} ") :].split("\n\n")[0].splitlines()
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
    # t(4) at 97.5 % is 2.776, t of 7.6 degrees of freedom 2.327: 2.776 * 0.021 * (1.2, 1.5), 2.327 * 0.0202
    assert _rows(body, "dataset (unseen)") == [
        ["lab/so101-unseen", "5", "640", "0.555 ± 0.070", "7.15 ± 0.20", "–"],
        ["sim:place-held-out", "5", "640", "0.755 ± 0.087", "11.15 ± 0.20", "–"],
        ["mean over sets", "–", "–", "0.655 ± 0.047", "9.15 ± 0.12", "–"],
    ]
    assert "95 % interval 0.539 to 0.579, paired over episodes" in body
    numbers = ["10", "2\u202f400", "2"]
    assert _rows(body, "client")[0] == ["cloth", "hf:lab/so101-cloth", *numbers, "cloth the red cube", "clean"]
    settings = dict(_rows(body, "setting"))
    assert settings["rounds"] == "3 of 3"
    assert settings["trained weights"] == "action expert and projections"
    assert settings["local training per round"] == "40 optimizer steps"
    assert settings["learning rate"] == "0.0001 (last round 5e-05)"
    assert settings["FedProx mu"] == "0.01 (last round 0.0105)"
    assert _rows(body, "weights")[1] == ["round 3 (this checkpoint)", "3c" * 32]


def test_attempts_in_closed_loop(
    session: Session, members: list[Member], history: list[RoundRecord], rollouts: list[Rollout]
) -> None:
    _, body = _parts(model_card(session, members, history, rollouts=rollouts))
    assert (
        "In closed loop, 1 of 3 attempts succeeded (33 %; 95 % Wilson interval 6 % to 79 %), 0 of 3 in round 0." in body
    )
    (row,) = _rows(body, "task")
    assert row[:5] == ["place", "place", "3", "0 (0 % to 56 %)", "1 (6 % to 79 %)"]
    assert "closed loop" not in _parts(model_card(session, members, history))[1]


def test_lora_settings_are_listed(session: Session, members: list[Member], history: list[RoundRecord]) -> None:
    lora = session.training.model_copy(update={"scope": "lora", "lora_rank": 8})
    _, body = _parts(model_card(session.model_copy(update={"training": lora}), members, history))
    trained = dict(_rows(body, "setting"))["trained weights"]
    assert trained == "LoRA on the action expert's matrices, rank 8, alpha 32, dropout 0.1, merged into these weights"


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"scope": "all", "features": "off"}, "all parameters"),
        ({"scope": ("model.a*", "model.b")}, r"the parameters that match model.a\*, model.b"),
        (
            {"personal": ("model.action_out_proj.*",)},
            r"action expert and projections, without model.action\_out\_proj.\*: each client has its own, and here "
            "they are those of the start policy",
        ),
    ],
)
def test_the_scope_is_listed(
    session: Session, members: list[Member], history: list[RoundRecord], changes: dict[str, Any], text: str
) -> None:
    training = session.training.model_copy(update=changes)
    _, body = _parts(model_card(session.model_copy(update={"training": training}), members, history))
    assert dict(_rows(body, "setting"))["trained weights"] == text


def test_the_card_says_whose_statistics_normalize(
    session: Session, members: list[Member], history: list[RoundRecord]
) -> None:
    start = history[0].evaluation
    assert start is not None
    carried = history[0].model_copy(update={"evaluation": start.model_copy(update={"normalization": "policy"})})
    for first, whose in ((history[0], "statistics pooled over clients"), (carried, "that the start policy carries")):
        _, body = _parts(model_card(session, members, [first, *history[1:]]))
        assert whose in dict(_rows(body, "setting"))["normalization"]


@pytest.mark.parametrize(
    ("amp", "precision"),
    [
        (True, "bf16 autocast, fp32 weights"),
        (False, "fp32"),
        ("auto", "fp32 on CPUs, bf16 autocast on GPUs that have it; fp32 weights"),
    ],
)
def test_the_precision_of_training(
    session: Session, members: list[Member], history: list[RoundRecord], amp: Any, precision: str
) -> None:
    training = session.training.model_copy(update={"amp": amp})
    _, body = _parts(model_card(session.model_copy(update={"training": training}), members, history))
    assert dict(_rows(body, "setting"))["precision"] == precision


def test_an_earlier_round_has_its_own_card(session: Session, members: list[Member], history: list[RoundRecord]) -> None:
    _, body = _parts(model_card(session, members, history[:3]))
    assert "four-arms, round 2" in body
    assert "2 of 3 rounds" in body
    assert "This round was not evaluated." in body
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
    assert "smolvla_bundled" not in plain
    tiny = model_card(session.model_copy(update={"policy": PolicySettings(path="tiny")}), members, history)
    assert "the plugin `lerobot_policy_smolvla_bundled`" in tiny
    assert "base_model" not in _parts(tiny)[0]
    for card in (plain, tiny):
        assert "--policy.path" in card
        for snippet in card.split("```python\n")[1:]:
            compile(snippet.split("```")[0], "card", "exec")


HOSTILE = "x\n---\nlicense: other\n# <script>alert(1)</script> | [a](javascript:b) ![c](https://evil.example/p.png)"


def test_the_next_commands(session: Session, members: list[Member], history: list[RoundRecord]) -> None:
    with_tasks = session.model_copy(update={"rollout": session.rollout.model_copy(update={"tasks": ("lift-red",)})})
    code = [
        token.content for token in MarkdownIt().parse(model_card(with_tasks, members, history)) if token.type == "fence"
    ]
    assert code[0] == "zk0 rollout FOLDER --out attempts --task lift-red --seeds 9000-9019\n"
    assert code[1].startswith("zk0 arm run FOLDER --port ")
    assert code[1].endswith(f' --task "{members[0].report.tasks[0]}"\n'), "a text that the policy was trained with"
    without = session.model_copy(update={"rollout": session.rollout.model_copy(update={"tasks": ()})})
    assert "zk0 rollout" not in model_card(without, members, history)


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


def test_the_root_of_the_ledger(session: Session, members: list[Member], history: list[RoundRecord]) -> None:
    _, body = _parts(model_card(session, members, history, CardProof("ab" * 32, {"config.json": "cd" * 32}, "ef" * 32)))
    assert f"Root of the session's ledger up to round 3: `{'ab' * 32}`" in body
    assert _rows(body, "file") == [["config.json", "cd" * 32]]
    assert f"The frozen weights have the SHA-256 `{'ef' * 32}`." in body
    assert "ledger" not in _parts(model_card(session, members, history))[1]


def test_joints_that_hardly_moved_are_named(
    session: Session, members: list[Member], history: list[RoundRecord]
) -> None:
    moments = members[0].statistics.state.model_copy(update={"std": (20.0, 20.0, 20.0, 20.0, 20.0, 1e-9)})
    still = members[0].model_copy(update={"statistics": Statistics(state=moments, action=moments)})
    _, body = _parts(model_card(session, members, history, groups=pool_groups(session.contract, [still], [])))
    assert "Joints that hardly moved in the training frames: gripper. Their standard deviation counts as 1 " in body


def test_groups_are_listed_with_the_command_that_loads_each(
    session: Session, members: list[Member], history: list[RoundRecord]
) -> None:
    group = {"statistics": members[0].statistics, "clients": ("cloth",)}
    groups = (
        StatisticsGroup(calibration="pos", units="normalized", evaluation_sets=("lab/so101-unseen",), **group),
        StatisticsGroup(calibration="main", units="degrees", **group),
    )
    _, body = _parts(model_card(session, members, history, groups=groups))
    rows = _rows(body, "group")
    assert [row[0] for row in rows] == ["pos-normalized (default)", "main-degrees"]
    assert [row[2:5] for row in rows] == [["normalized", "cloth", "lab/so101-unseen"], ["degrees", "cloth", "–"]]
    assert "cp statistics/main-degrees/policy_* ." in body
    assert "## Groups" not in model_card(session, members, history)

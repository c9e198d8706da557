"""What a node may claim: counts, moments, digests, numbers and texts out of bounds are refused by name, before use."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard
from flwr.app import ConfigRecord, MetricRecord, RecordDict
from planned_updates import PlannedUpdate
from pydantic import ValidationError

from zk0.aggregation.aggregate import aggregate
from zk0.errors import DatasetError
from zk0.evaluation.dataset_agreement import agreeing_members
from zk0.evaluation.session_setup import EvaluationSet
from zk0.federation.flower.flower_message import WEIGHTS_PATH
from zk0.federation.network.server import ServerFolder, ServerSettings
from zk0.federation.protocol.answers import answer_problem
from zk0.federation.protocol.exchange import Reply
from zk0.federation.protocol.registry import Registry
from zk0.federation.protocol.replies import parse_report, parse_score
from zk0.federation.protocol.spool import JoinedWith, Spool
from zk0.records import (
    ClientScore,
    DatasetReport,
    LoraShape,
    Member,
    Refusal,
    Split,
    SummedUpdates,
    Update,
    WireFormat,
)
from zk0.settings.dataset_settings import ContractSettings
from zk0.settings.loading import parse_session
from zk0.weights.compression import compress_weights
from zk0.weights.digests import digest, load_weights
from zk0.weights.tensor_spec import TensorSpec, encode_header
from zk0.weights.writer import save_weights

HUGE = 10**400
MOMENTS = {"count": 90, "mean": [1.0] * 6, "std": [20.0] * 6, "min": [-90.0] * 6, "max": [90.0] * 6}
MEMBER: dict[str, Any] = {
    "client": "evil",
    "dataset": "local:x",
    "report": {"dataset": "local:x", "root": "", "fps": 10.0, "episodes": 4, "frames": 120},
    "split": {"train": [0, 1, 2], "held_out": [3]},
    "train_frames": 90,
    "statistics": {"state": MOMENTS, "action": MOMENTS},
    "train_digests": [f"{n:064x}" for n in range(3)],
    "held_out_digests": [f"{9:064x}"],
}


def claimed(**changes: Any) -> dict[str, Any]:
    """A joining answer with changed fields; `state` and `action` take changes of both features' moments."""
    values = json.loads(json.dumps(MEMBER))
    for feature in ("state", "action"):
        values["statistics"][feature].update(changes.pop("moments", {}) if feature == "action" else {})
        values["statistics"][feature].update(changes.get("moments", {}) if feature == "state" else {})
    values["report"].update(changes.pop("report", {}))
    return values | changes


ERROR = {"rule": "x", "severity": "error", "where": "w", "found": "f", "expected": "e", "repair": None}
LIES = {
    "std 1e200": claimed(moments={"std": [1e200] * 6}),
    "std 1e30": claimed(moments={"std": [1e30] * 6}),
    "std above half the range": claimed(moments={"std": [90.1] * 6}),
    "std negative": claimed(moments={"std": [-1.0] * 6}),
    "std of one dimension": claimed(moments={"std": [1.0]}),
    "seven dimensions": claimed(moments={k: [0.0] * 7 for k in ("mean", "std", "min", "max")}),
    "no dimension": claimed(moments={k: [] for k in ("mean", "std", "min", "max")}),
    "min above max": claimed(moments={"min": [9.0] * 6, "max": [-9.0] * 6, "mean": [0.0] * 6}),
    "mean above max": claimed(moments={"mean": [91.0] * 6}),
    "impossible degrees": claimed(moments={"max": [1e155] * 6}),
    "implausible degrees": claimed(moments={"std": [300.0] * 6, "min": [-361.0] * 6, "max": [361.0] * 6}),
    "count 1e15": claimed(moments={"count": 10**15, "std": [0.0] * 6}),
    "count 10**400": claimed(moments={"count": HUGE}),
    "count of other frames": claimed(moments={"count": 91}),
    "moments as text": claimed(moments={"mean": ["1"] * 6}),
    "moments true": claimed(moments={"mean": [True] * 6}),
    "rate as text": claimed(report={"fps": "10"}),
    "rate true": claimed(report={"fps": True}),
    "count true": claimed(moments={"count": True}),
    "train_frames 1e15": claimed(train_frames=10**15),
    "more frames than the dataset": claimed(report={"frames": 89}),
    "more episodes than the dataset": claimed(report={"episodes": 2}),
    "no digest": claimed(train_digests=[]),
    "one digest twice": claimed(train_digests=[f"{0:064x}"] * 3),
    "a held-out digest among the training ones": claimed(held_out_digests=[f"{0:064x}"]),
    "a digest that is none": claimed(train_digests=["x", f"{1:064x}", f"{2:064x}"]),
    "an episode twice": claimed(split={"train": [0, 1, 1], "held_out": [3]}),
    "a negative episode": claimed(split={"train": [0, 1, -1], "held_out": [3]}),
    "no training episode": claimed(split={"train": [], "held_out": [3]}, train_digests=[]),
    "errors in its own report": claimed(report={"findings": [ERROR]}),
    "a megabyte of name": claimed(dataset="x" * 1_000_000),
    "thousands of tasks": claimed(report={"tasks": ["t"] * 5000}),
    "thousands of repairs": claimed(report={"repairs": ["r"] * 5000}),
    "megabytes of warnings": claimed(report={"findings": [ERROR | {"severity": "warning", "found": "f" * 3900}] * 900}),
    "a negative frame rate": claimed(report={"fps": -10.0}),
    "a frame rate of 1e300": claimed(report={"fps": 1e300}),
    "another client's name": claimed(client="a"),
    "a path as name": claimed(client="../x"),
    "a number as name": claimed(client=7),
    "an unknown field": claimed(more=1),
}  # fmt: skip


def joining(values: dict[str, Any]) -> Reply:
    return Reply("3", RecordDict({"answer": ConfigRecord({"member": json.dumps(values)})}))


@pytest.mark.parametrize("wrong", ["1", True])
def test_numbers_of_updates_have_their_type(wrong: Any) -> None:
    summed = {"clients": ("a", "b"), "roster": "d", "threshold": 2, "bits": 16, "step": 1e-6, "share": 1.0}
    SummedUpdates.model_validate(summed)
    for name in ("step", "share", "threshold"):
        with pytest.raises(ValidationError, match=name):
            SummedUpdates.model_validate_json(json.dumps(summed | {name: wrong}))
    for name in ("rank", "alpha"):
        with pytest.raises(ValidationError, match=name):
            LoraShape.model_validate_json(json.dumps({"rank": 4, "alpha": 8} | {name: wrong}))


@pytest.mark.parametrize("lie", LIES)
def test_a_lying_joining_answer_is_refused(lie: str) -> None:
    registry = Registry(ContractSettings())
    reason = registry.register(joining(LIES[lie]), 3, {3: "evil"})
    assert reason
    assert len(reason) <= 2000
    assert (registry.members, registry.invalid) == ({}, {3: registry.invalid[3]})


def test_an_honest_joining_answer_is_taken() -> None:
    registry = Registry(ContractSettings())
    constant = claimed(moments={"mean": [0.1 + 0.2] * 6, "std": [1e-17] * 6, "min": [0.3] * 6, "max": [0.3] * 6})
    for values in (MEMBER, constant):
        registry = Registry(ContractSettings())
        assert registry.register(joining(values), 3, {3: "evil"}) == ""


def member(client: str, fps: float | None = 10.0, *digests: int) -> Member:
    values = claimed(client=client, report={"fps": fps})
    values["split"] = {"train": list(range(len(digests))), "held_out": []}
    return Member.model_validate_json(
        json.dumps(values | {"train_digests": [f"{n:064x}" for n in digests], "held_out_digests": []})
    )


def evaluation_set(*digests: int) -> EvaluationSet:
    report = DatasetReport(dataset="e", root="", fps=10.0)
    found = tuple(f"{n:064x}" for n in digests)
    return EvaluationSet(dataset="e", root="", rename_map={}, report=report, split=Split(train=()), digests=found)


def in_order(members: list[Member]) -> list[Member]:
    return sorted(members, key=lambda m: m.client)


def test_members_that_do_not_agree_are_refused_by_name_and_the_others_stay() -> None:
    session = parse_session(
        {"evaluation": {"datasets": [{"dataset": "local:e"}]}, "federation": {"engine": "deployment"}}, "x"
    )
    honest = [member("a", 10.0, 1, 2), member("b", 10.0, 3, 4)]
    liars = {
        "rate": member("aa", 11.0, 7),
        "no rate": member("aa", None, 7),
        "of an evaluation set": member("aa", 10.0, 7, 90),
        "of several": member("aa", 10.0, 1, 3),
        "of one": member("evil", 10.0, 4, 8),
    }
    for what, liar in liars.items():
        found, reasons = agreeing_members(session, in_order([*honest, liar]), [evaluation_set(90)], enrolled=("a", "b"))
        assert [m.client for m in found] == ["a", "b"], what
        assert list(reasons) == [liar.client], what
    known, reasons = agreeing_members(session, [member("a", 10.0, 4, 8), honest[1]], [evaluation_set(90)], {"b"})
    assert [m.client for m in known] == ["b"]
    assert "share 1 episode" in reasons["a"]
    with pytest.raises(DatasetError):
        agreeing_members(session, honest, [evaluation_set(90), evaluation_set(90).model_copy(update={"dataset": "f"})])


@pytest.mark.parametrize("liar", ["aa", "evil"])
def test_who_copies_an_episode_does_not_take_the_place_of_who_was_enrolled_before(liar: str) -> None:
    """Whatever their names are; a name decides nothing either where nobody knows who was enrolled first."""
    session = parse_session(
        {"evaluation": {"datasets": [{"dataset": "local:e"}]}, "federation": {"engine": "deployment"}}, "x"
    )
    members = in_order([member("a", 10.0, 1, 2), member("b", 10.0, 3, 4), member(liar, 10.0, 3, 7)])
    for enrolled in (("b", liar, "a"), ("b",)):
        found, reasons = agreeing_members(session, members, [evaluation_set(90)], enrolled=enrolled)
        assert ([m.client for m in found], list(reasons)) == (["a", "b"], [liar])
    found, reasons = agreeing_members(session, members, [evaluation_set(90)], enrolled=("a",))
    assert ([m.client for m in found], sorted(reasons)) == (["a"], sorted(["b", liar]))
    found, reasons = agreeing_members(session, members, [evaluation_set(90)], {"b"}, (liar, "b"))
    assert ([m.client for m in found], list(reasons)) == (["a", "b"], [liar])


def test_the_order_of_enrollment(tmp_path: Path) -> None:
    server = ServerFolder(tmp_path)
    assert server.enrollment_order() == ()
    server.init(ServerSettings(hosts=("127.0.0.1",)))
    for name in ("c", "a", "b"):
        server.enroll(name)
    server.revoke("c")
    server.enroll("c")
    assert server.enrollment_order() == ("a", "b", "c")


@pytest.fixture
def planned(tmp_path: Path) -> PlannedUpdate:
    return PlannedUpdate(tmp_path, WireFormat())


METRICS = ("policy_loss", "fedprox_loss", "grad_norm", "update_norm", "local_steps", "lr_first", "lr_last", "seconds")
NUMBERS = {
    **{f"{name} {value:.0e}": {"metrics": {name: value}} for name in METRICS for value in (1e308, -1e308, -1)},
    **{f"{name} 10**400": {"metrics": {name: HUGE}} for name in METRICS},
    **{f"{name} true": {"metrics": {name: True}} for name in METRICS},
    **{f"{name} {kind}": {name: value} for name in ("examples", "bytes", "round")
       for kind, value in (("10**400", HUGE), ("-1", -1), ("true", True), ("text", "1"), ("1.0", 1.0), ("1e12", 1e12))},
    "a megabyte": {"dataset": "x" * 1_000_000},
    "a megabyte of path": {"path": "x" * 1_000_000},
    "other examples": {"examples": 2},
}  # fmt: skip


@pytest.mark.parametrize("claim", NUMBERS)
def test_a_claim_out_of_bounds_costs_the_update(planned: PlannedUpdate, claim: str) -> None:
    values, change = json.loads(planned.update.model_dump_json()), dict(NUMBERS[claim])
    values["metrics"] |= change.pop("metrics", {})
    sent = (planned.folder / "sent.safetensors").read_bytes()
    (planned.folder / "received").write_bytes(sent)
    answer = {"update": json.dumps(values | change), WEIGHTS_PATH: str(planned.folder / "received")}
    spool = Spool(planned.folder / "spool", planned.folder / "global.safetensors", {"a": JoinedWith(1, "d")})
    found = spool.receive(RecordDict({"answer": ConfigRecord(answer)}), planned.plan, ())
    assert isinstance(found, Refusal)
    assert spool.load(planned.plan) is None


def test_examples_and_dataset_are_those_of_the_joining_answer(planned: PlannedUpdate) -> None:
    (planned.folder / "received").write_bytes((planned.folder / "sent.safetensors").read_bytes())
    text = planned.update.model_dump_json()
    answer = RecordDict({"answer": ConfigRecord({"update": text, WEIGHTS_PATH: str(planned.folder / "received")})})
    spool = Spool(planned.folder / "spool", planned.folder / "global.safetensors", {"a": JoinedWith(5, "d")})
    found = spool.receive(answer, planned.plan, ())
    assert found.reason == "1 examples, expected the 5 training frames that it joined with"
    joined = {"a": JoinedWith(1, "local:a")}
    found = Spool(spool._folder, spool._global, joined).receive(answer, planned.plan, ())
    assert isinstance(found, Update)
    assert (planned.update.dataset, found.dataset) == ("d", "local:a")


def test_a_digest_of_another_algorithm_than_the_sessions_is_refused(planned: PlannedUpdate) -> None:
    sent = planned.folder / "sent.safetensors"
    other = digest(load_weights(sent), "sha256")
    found = planned.receive(planned.update.model_copy(update={"digest": other}).model_dump_json(), sent.read_bytes())
    assert found.reason == "its digest is of sha256, expected blake3 as this session uses"


def test_a_form_that_was_not_planned_is_refused_before_anything_is_unpacked(planned: PlannedUpdate) -> None:
    """A small frame declares a LoRA rank of a million: neither its bytes nor what it unpacks to is stored."""
    specs = {"w": TensorSpec("float32", (1000, 1000))}
    with (planned.folder / "bomb").open("wb") as file, zstandard.ZstdCompressor().stream_writer(file) as out:
        out.write(encode_header(["w"], specs))
        out.write(bytes(4_000_000))
    bomb = (planned.folder / "bomb").read_bytes()
    for change in (
        {"wire": WireFormat(compressed=True)},
        {"wire": WireFormat(compressed=True), "lora": {"rank": 4000, "alpha": 1}},
        {"wire": WireFormat(upload="int8")},
        {"has_control_variates": True},
    ):
        values = planned.update.model_dump(mode="json") | {
            k: v.model_dump(mode="json") if isinstance(v, WireFormat) else v for k, v in change.items()
        }
        found = planned.receive(json.dumps(values), bomb)
        assert "expected" in found.reason
        assert [p.name for p in (planned.folder / "spool").iterdir()] == ["refusals.jsonl"]


def test_a_file_above_its_expected_size_is_not_stored(planned: PlannedUpdate) -> None:
    save_weights(planned.folder / "big", {"w": np.zeros((200, 300), np.float32)})
    found = planned.receive(planned.update.model_dump_json(), (planned.folder / "big").read_bytes())
    assert "bytes, expected at most" in found.reason
    assert [p.name for p in (planned.folder / "spool").iterdir()] == ["refusals.jsonl"]
    packed = PlannedUpdate(planned.folder, WireFormat(compressed=True))
    compress_weights(planned.folder / "big", planned.folder / "packed")
    found = packed.receive(packed.update.model_dump_json(), (planned.folder / "packed").read_bytes())
    assert "other tensors than expected" in found.reason
    assert [p.name for p in (planned.folder / "spool").iterdir()] == ["refusals.jsonl"]


@pytest.mark.parametrize("tensors", [1, 1000])
def test_a_header_of_empty_tensors_is_refused_before_it_is_hashed(planned: PlannedUpdate, tensors: int) -> None:
    """300,000 empty tensors took 18 s to hash. Their digest is wrong, too, but the refusal names what came first."""
    header = {f"t{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(tensors)}
    text = json.dumps(header).encode()
    found = planned.receive(planned.update.model_dump_json(), len(text).to_bytes(8, "little") + text)
    assert found.reason == "tensors are missing: w"


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        ({}, "an empty answer"),
        ({"answer": MetricRecord({"update": 1})}, "an empty answer"),
        ({"answer": ConfigRecord({"update": b"{}"})}, "an answer whose update is of type bytes"),
        ({"answer": ConfigRecord({"update": ["x"]})}, "an answer whose update is of type list"),
        ({"answer": ConfigRecord({"refusal": 1})}, "an answer whose refusal is of type int"),
        ({"answer": ConfigRecord({"done": "yes"})}, "an answer whose done is of type str"),
        ({"answer": ConfigRecord({"update": "x" * 70_000})}, "has 70000 characters"),
        ({"answer": ConfigRecord({"else": 1})}, "the unknown key 'else'"),
        ({"answer": ConfigRecord({"done": True})}, ""),
    ],
)
def test_form_of_an_answer(answer: dict[str, Any], problem: str) -> None:
    found = answer_problem(RecordDict(answer))
    assert problem in found
    assert bool(found) == bool(problem)


def test_a_score_out_of_bounds_is_refused() -> None:
    episode = {"episode": 1, "frames": 2, "actions": 3, "policy_loss": 1.0, "action_error_degrees": 1.0}
    score = {
        "dataset": "d", "episodes": [episode], "frames": 2, "policy_loss": 1.0, "policy_loss_se": None,
        "action_error_degrees": 1.0, "joint_error_degrees": [1.0], "horizon_error_degrees": [1.0],
    }  # fmt: skip
    for change in ({}, {"policy_loss": 1e308}, {"frames": HUGE}, {"episodes": [episode | {"actions": HUGE}]}):
        text = json.dumps({"client": "a", "score": score | change})
        found = parse_score(Reply("a", RecordDict({"answer": ConfigRecord({"score": text})})))
        assert isinstance(found, Refusal) == bool(change), change


def honest_score() -> dict[str, Any]:
    """A score of the held-out episode of MEMBER."""
    episode = {"episode": 3, "frames": 4, "actions": 30, "policy_loss": 0.5, "action_error_degrees": 7.0}
    return {
        "dataset": "local:x", "episodes": [episode], "frames": 4, "policy_loss": 0.5, "policy_loss_se": None,
        "action_error_degrees": 7.0, "joint_error_degrees": [7.0] * 6, "horizon_error_degrees": [7.0] * 8,
    }  # fmt: skip


EPISODE: dict[str, Any] = honest_score()["episodes"][0]
FALSE_SCORES: dict[str, dict[str, Any]] = {
    "no episode": {"episodes": [], "frames": 0},
    "an episode that it trains on": {"episodes": [EPISODE | {"episode": 1}]},
    "an episode twice": {"episodes": [EPISODE, EPISODE], "frames": 8},
    "more episodes": {"episodes": [EPISODE, EPISODE | {"episode": 4}], "frames": 8},
    "other frames than its episodes": {"frames": 5},
    "an episode without a frame": {"episodes": [EPISODE | {"frames": 0}], "frames": 0},
    "smaller errors of the joints than of all": {"joint_error_degrees": [0.0] * 6},
    "five joints": {"joint_error_degrees": [7.0] * 5},
    "no joint": {"joint_error_degrees": []},
    "a million steps": {"horizon_error_degrees": [7.0] * 10**6},
    "a better loss than its episodes": {"policy_loss": 0.1},
    "a smaller error than its episodes": {"action_error_degrees": 0.0},
}


@pytest.mark.parametrize("lie", FALSE_SCORES)
def test_a_score_must_be_that_of_the_held_out_episodes(lie: str) -> None:
    member = Member.model_validate(MEMBER)

    def parsed(score: dict[str, Any], **more: Any) -> Any:
        text = json.dumps({"client": "evil", "score": score, **more})
        return parse_score(Reply("evil", RecordDict({"answer": ConfigRecord({"score": text})})), member)

    claimed = parsed(
        honest_score() | {"dataset": "hf:lab/famous"}, personal=honest_score() | {"dataset": "hf:lab/famous"}
    )
    assert claimed == parsed(honest_score(), personal=honest_score())
    assert (claimed.score.dataset, claimed.personal.dataset) == ("local:x", "local:x")
    lies = honest_score() | FALSE_SCORES[lie]
    for found in (parsed(lies), parsed(honest_score(), personal=lies)):
        assert isinstance(found, Refusal)
        assert re.search("is not that of its episodes|is not a score", found.reason)


def test_a_score_of_an_own_policy_needs_personal_parameters() -> None:
    text = json.dumps({"client": "evil", "score": honest_score(), "personal": honest_score()})
    reply = Reply("evil", RecordDict({"answer": ConfigRecord({"score": text})}))
    member = Member.model_validate(MEMBER)
    assert isinstance(parse_score(reply, member, may_be_personal=True), ClientScore)
    found = parse_score(reply, member, may_be_personal=False)
    assert found == Refusal(
        client="evil", reason="it scores a policy of its own, and the plan has no personal parameters"
    )


def honest_report() -> dict[str, Any]:
    """A joining report of MEMBER, whose models differ in their losses."""
    losses = dict(zip(("base", "local_only", "federated", "fine_tuned"), (0.9, 0.5, 0.25, 0.125), strict=True))
    models = {
        name: honest_score() | {"policy_loss": loss, "episodes": [EPISODE | {"policy_loss": loss}]}
        for name, loss in losses.items()
    }
    improvements = {"base-federated": 0.65, "local_only-federated": 0.25, "local_only-fine_tuned": 0.375}
    improvements["federated-fine_tuned"] = 0.125
    return {
        "client": "evil", "dataset": "x\x1b[31m[/b]", "rounds": 1, "models": models,
        "losses": {name: estimate(loss) for name, loss in losses.items()},
        "improvements": {name: estimate(value) for name, value in improvements.items()},
    }  # fmt: skip


def estimate(value: float, se: float | None = None, dof: float | None = None) -> dict[str, float | None]:
    return {"value": value, "se": se, "dof": dof}


def with_model(name: str, **changes: Any) -> dict[str, Any]:
    models = honest_report()["models"]
    return {"models": models | {name: models[name] | changes}}


def with_estimate(of: str, name: str, *numbers: Any) -> dict[str, Any]:
    return {of: honest_report()[of] | {name: estimate(*numbers)}}


FALSE_REPORTS: dict[str, dict[str, Any]] = {
    "rounds": {"rounds": HUGE},
    "other rounds": {"rounds": 2},
    "a model is missing": {"models": {k: v for k, v in honest_report()["models"].items() if k != "base"}},
    "another model": {"models": honest_report()["models"] | {"[/x]": honest_score()}},
    **{f"base: {lie}": with_model("base", **changes) for lie, changes in FALSE_SCORES.items()},
    "models of other frames": with_model(
        "federated", frames=5, policy_loss=0.25, episodes=[EPISODE | {"frames": 5, "policy_loss": 0.25}]
    ),
    "models of other actions": with_model(
        "federated", policy_loss=0.25, episodes=[EPISODE | {"actions": 31, "policy_loss": 0.25}]
    ),
    "a huge loss of a model": with_model("base", policy_loss=1e308),
    "no number as loss of a model": with_model("base", policy_loss=float("nan")),
    "a better loss than that of the model": with_estimate("losses", "federated", 0.1),
    "a huge loss": with_estimate("losses", "federated", 1e300),
    "an error that one episode has not": with_estimate("losses", "federated", 0.25, 0.001, 30.0),
    "a larger improvement": with_estimate("improvements", "local_only-federated", 0.5),
    "an improvement with an interval": with_estimate("improvements", "local_only-federated", 0.25, 1e-9, 100.0),
    "degrees of freedom only": with_estimate("improvements", "local_only-federated", 0.25, None, -1.0),
    "another improvement": with_estimate("improvements", "[/x]", 0.25),
    "no improvement": {"improvements": {}},
    "no loss": {"losses": {}},
    "a name of a megabyte": {"dataset": "x" * 2_000_000},
    "thousands of models": {"models": {str(n): honest_score() for n in range(1000)}},
    "thousands of losses": {"losses": {str(n): {"value": 1, "se": None, "dof": None} for n in range(1000)}},
    "another client": {"client": "other"},
    "no number": {"losses": {"base": {"value": 1e400, "se": None, "dof": None}}},
}


@pytest.mark.parametrize("lie", FALSE_REPORTS)
def test_a_joining_report_must_be_that_of_the_held_out_episodes(lie: str) -> None:
    member = Member.model_validate(MEMBER)

    def parsed(report: dict[str, Any]) -> str | Refusal:
        answer = RecordDict({"answer": ConfigRecord({"report": json.dumps(report)})})
        return parse_report("evil", answer, member, rounds=1)

    shown = json.loads(str(parsed(honest_report())))
    assert shown["dataset"] == "local:x"
    assert {one["dataset"] for one in shown["models"].values()} == {"local:x"}
    assert isinstance(found := parsed(honest_report() | FALSE_REPORTS[lie]), Refusal)
    assert re.search("is not that of its episodes|is not a joining report|names client other", found.reason)
    assert "[/x]" not in found.reason


TEXTS = [
    "[/x] hello",
    "[/a[b]c] nested",
    "[link=http://evil.example/[b]]nested[/link]",
    "[link=http://evil.example]click[/link]",
    "\x1b]0;pwn\x07\x1b[2J",
    "a\r\n2026 INFO forged",
    "\u202e",
]


@pytest.mark.parametrize("text", TEXTS)
def test_a_refusal_is_one_clean_line_in_journal_and_audit(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from flwr.app import Message, Metadata
    from rich.markup import render

    from flows.bot.audit_view import print_received_answers
    from zk0.audit.journal import ReceivedJournal
    from zk0.federation.protocol.exchange import parse_reply
    from zk0.federation.protocol.received_log import ReceivedLog

    metadata = Metadata(1, "x", 1, 2, "", "g", 0.0, 60, "train")
    reply = parse_reply(
        "a", Message(content=RecordDict({"answer": ConfigRecord({"refusal": text})}), metadata=metadata), ""
    )
    assert (render(reply.error).plain, render(reply.error).spans) == (reply.error, [])
    log = ReceivedLog(tmp_path / "accepted.jsonl", "s")
    log.record(reply, ("train", 1), refusal=reply.error)
    log.record(reply._replace(error=text), ("train", 1), refusal=text)  # in a journal of an earlier version
    print_received_answers(ReceivedJournal(tmp_path / "accepted.jsonl").read(), "00" * 32)
    shown = capsys.readouterr().out
    assert "2 answers" in shown
    for raw in (reply.error, shown.replace("\n", "")):
        assert not any(ord(c) < 32 or ord(c) in (0x7F, 0x202E) for c in raw)


def test_no_client_gets_more_than_its_share(tmp_path: Path) -> None:
    """Four honest clients pull to 1, one with an absurd count pulls to -1."""
    from zk0.aggregation.reduction_plan import AggregationTerms
    from zk0.settings.aggregation_settings import AggregationSettings

    planned = PlannedUpdate(tmp_path, WireFormat())
    digest, _ = save_weights(tmp_path / "g", {"w": np.zeros(4, np.float32)})

    def update(client: str, value: float, examples: int) -> Update:
        found, size = save_weights(tmp_path / client, {"w": np.full(4, value, np.float32)})
        changes = {
            "client": client,
            "path": str(tmp_path / client),
            "digest": found,
            "bytes": size,
            "examples": examples,
        }
        return planned.update.model_copy(update=changes | {"global_digest": digest})

    updates = [*(update(c, 1, 1500) for c in "abcd"), update("evil", -1, 2**28)]

    def share(settings: AggregationSettings) -> float:
        terms = AggregationTerms(settings, max_share_factor=settings.max_share_factor)
        found = aggregate(updates, tmp_path / "g", tmp_path / "new", terms)
        return found.contributions[-1].weight

    assert share(AggregationSettings()) == pytest.approx(3 / 7)
    assert share(AggregationSettings(max_share_factor=1)) == pytest.approx(1 / 5)
    assert share(AggregationSettings(weighting="equal")) == pytest.approx(1 / 5)
    assert share(AggregationSettings(max_share_factor=0)) > 0.99


def test_a_count_counts_no_more_in_pooled_statistics() -> None:
    from tasks.preparation import pool_statistics

    far = {"mean": [80.0] * 6, "std": [0.0] * 6, "count": 10**8}
    liar = Member.model_validate_json(json.dumps(claimed(moments=far, train_frames=10**8, report={"frames": 10**8})))
    honest = [member(name, 10.0, number) for number, name in enumerate("abcd")]
    values = {"evaluation": {"datasets": [{"dataset": "local:e"}]}, "federation": {"engine": "deployment"}}
    capped, free = (parse_session(values | {"aggregation": {"max_share_factor": f}}, "x") for f in (3.0, 0.0))
    (group,) = pool_statistics.fn(capped, (*honest, liar), [])
    pooled = group.statistics
    assert pooled.state.mean[0] == pytest.approx((4 * 1 + 3 * 80) / 7)
    assert pool_statistics.fn(free, (*honest, liar), [])[0].statistics.state.mean[0] > 79

"""What a server may ask of a node: what breaks a limit of the node is refused, told and journaled."""

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ConfigRecord, Context, Message, Metadata, RecordDict
from pydantic import ValidationError

from flows.bot.audit_view import asked_lines
from zk0.audit.journal import SentJournal
from zk0.errors import FederationError, SettingsError
from zk0.federation.network.node import NodeFolder
from zk0.federation.protocol.client_app import flower_client_app
from zk0.federation.protocol.exchange import RECEIPTS
from zk0.federation.protocol.request_limits import (
    LIMITS,
    check_epochs,
    check_member,
    check_plan,
    check_score,
    check_terms,
    round_clock,
)
from zk0.federation.protocol.statistics_digest import statistics_label
from zk0.records import Member, Moments, PolicyRecipe, SetScore, Statistics
from zk0.settings.dataset_settings import ClientSettings, ContractSettings, DataSettings, SimulatorSettings
from zk0.settings.node_limits import NodeLimits
from zk0.settings.plans import (
    EvaluationPlan,
    FeaturePlan,
    JoiningReportPlan,
    RoundPlan,
    SecureRules,
    SessionTerms,
    VideoPlan,
)
from zk0.settings.training_settings import LocalTrainingSettings, SchedulerSettings


def terms(session: str = "2026-01-01_00-00-00_s", holdout: int = 1, **simulator: Any) -> SessionTerms:
    return SessionTerms(
        session=session,
        seed=1,
        contract=ContractSettings(),
        data=DataSettings(holdout_episodes=holdout),
        simulator=SimulatorSettings(**simulator),
    )


def common(**training: Any) -> dict[str, Any]:
    return {
        "terms": terms(),
        "round": 1,
        "client": "a",
        "recipe": PolicyRecipe(path="tiny", cameras=("overhead", "wrist"), joints=6, seed=1),
        "global_digest": "0" * 64,
        "statistics": None,
        "training": LocalTrainingSettings(**training),
    }


def plan(training: dict[str, Any] | None = None, **changes: Any) -> RoundPlan:
    values = {"lr": 1e-4, "mu": 0.01, "scheduler": SchedulerSettings()}
    return RoundPlan(**{**common(**(training or {})), **values, **changes})


def evaluation(**changes: Any) -> EvaluationPlan:
    return EvaluationPlan(**{**common(), "times": 8, "batch_size": 32, "every_frames": 4, **changes})


def joining_report(rounds: int = 2, **changes: Any) -> JoiningReportPlan:
    own = {"lrs": (1e-4,) * rounds, "scheduler": SchedulerSettings(), **changes}
    return JoiningReportPlan(**{**dict(evaluation()), **own})


def recipe(path: str, cameras: tuple[str, ...] = ("overhead",), revision: str | None = None) -> dict[str, Any]:
    return {"recipe": PolicyRecipe(path=path, cameras=cameras, joints=6, seed=1, revision=revision)}


@pytest.fixture
def config(tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "scratch").mkdir()
    return {
        "client": ClientSettings(name="a", dataset="sim:lift-red").model_dump_json(),
        "scratch": str(tmp_path / "scratch"),
        "cache": str(tmp_path / "cache"),
        LIMITS: NodeLimits().model_dump_json(),
    }


VIDEO = {"timestamp": "2026-01-01T00:00:00Z"}
ASKED: dict[str, Any] = {
    "one frame a step": plan({"local_steps": 100, "batch_size": 1}),
    "one frame a step in epochs": plan({"batch_size": 1}),
    "seven frames a step": plan({"local_steps": 100, "batch_size": 7}),
    "248 frames in all": plan({"local_steps": 31, "batch_size": 8}),
    "a mean gradient of 64 frames": plan({"local_steps": 1, "batch_size": 64}, use_control_variates=True),
    "a large eps": plan({"eps": 1e-2}),
    "a large lr": plan(lr=1e6),
    "a learning rate that rises": plan(scheduler=SchedulerSettings(eta_min=1e6)),
    "a last step that alone counts": plan(lr=1e-30, scheduler=SchedulerSettings(eta_min=0.1)),
    "a large mu": plan(mu=1e6),
    "no momentum": plan({"betas": (0.0, 0.999)}),
    "no clipping": plan({"grad_clip_norm": 1e30}),
    "gradients far below eps": plan({"grad_clip_norm": 1e-12}),
    "weight decay": plan({"weight_decay": 1e3}),
    "masks with two clients": plan(secure=SecureRules(bits=16, neighbors=2, limit=0.004, max_share_factor=3.0)),
    "a folder as policy": plan(**recipe("/etc")),
    "a home as policy": plan(**recipe("~/.ssh")),
    "a parent as policy": plan(**recipe("../../..")),
    "a policy of the Hub": plan(**recipe("evil-org/evil-policy")),
    "a proposed revision of an allowed policy": plan(**recipe("lerobot/smolvla_base", revision="refs/pr/7")),
    "a commit of an allowed policy": plan(**recipe("lerobot/smolvla_base", revision="0" * 40)),
    "a camera with a path": plan(**recipe("tiny", ("../../../../etc/passwd",))),
    "threads": plan({"torch_threads": 1000}),
    "steps": plan({"local_steps": 10**6}),
    "epochs": plan({"local_epochs": 10_000}),
    "a cache": plan({"feature_cache_gb": 1e6}),
    "a rank": plan({"scope": "lora", "lora_rank": 4096}),
    "nearly all inputs dropped": plan({"scope": "lora", "lora_dropout": 0.999999}),
    "a large alpha": plan({"scope": "lora", "lora_rank": 1, "lora_alpha": 10**6}),
    "a large alpha of a large rank": plan({"scope": "lora", "lora_rank": 256, "lora_alpha": 256 * 64 + 1}),
    "times": evaluation(times=10**6),
    "a batch": evaluation(batch_size=10**9),
    "videos": evaluation(video=VideoPlan(episodes=1000, camera_height=240, **VIDEO)),
    "large videos": evaluation(video=VideoPlan(episodes=1, camera_height=100_000, **VIDEO)),
    "a long baseline": joining_report(rounds=2000),
    "a baseline of single frames": joining_report(training=LocalTrainingSettings(local_steps=1, batch_size=1)),
    "a session with a path": plan(terms=terms("../../../lab/pwned")),
    "a session with a line": plan(terms=terms("x\n2026 INFO forged")),
    "simulated episodes": plan(terms=terms(episodes=10**9)),
    "simulated images": plan(terms=terms(image_size=10**6)),
}


@pytest.mark.parametrize("what", ASKED)
def test_a_request_outside_the_limits_is_refused(what: str, config: dict[str, Any]) -> None:
    with pytest.raises(FederationError, match="the server asks for what this node's limits do not allow"):
        check_plan(ASKED[what], config)
    del config[LIMITS]  # a client of a session on one machine, whose operator is the server's
    check_plan(ASKED[what], config)


@pytest.mark.parametrize("change", [{"client": "b; done\n2026 | INFO | forged"}, {"global_digest": "d\x1b[31m"}])
def test_words_of_a_plan_that_a_node_writes_into_its_log(change: dict[str, str]) -> None:
    values = json.loads(plan().model_dump_json())
    assert RoundPlan.model_validate_json(json.dumps(values)) == plan()
    with pytest.raises(ValidationError, match="should match pattern"):
        RoundPlan.model_validate_json(json.dumps(values | change))


def test_normal_requests_are_allowed(config: dict[str, Any]) -> None:
    check_terms(terms(), config)
    demo = {"local_steps": 120, "batch_size": 32}
    for normal in (plan(), plan(demo, lr=2e-3), plan({"local_steps": 32, "batch_size": 8}), evaluation()):
        check_plan(normal, config)
    check_plan(plan(use_control_variates=True), config)
    check_plan(plan({"scope": "lora", "lora_rank": 1, "lora_alpha": 64, "lora_dropout": 0.5}), config)


def test_settings_refuse_what_makes_adamw_a_plain_gradient() -> None:
    for wrong in ({"eps": 1e6}, {"betas": (0.0, 1.0)}, {"local_steps": 10**9}, {"torch_threads": 100_000}):
        with pytest.raises(ValidationError):
            LocalTrainingSettings(**wrong)


def answer(kind: str, config: dict[str, Any], **request: str) -> dict[str, Any]:
    metadata = Metadata(1, "x", 1, 2, "", "g", time.time(), 60, kind)
    message = Message(content=RecordDict({"config": ConfigRecord(request)}), metadata=metadata)
    return dict(flower_client_app(message, Context(1, 1, config, RecordDict(), {})).content["answer"])


def test_a_plan_for_one_frame_is_refused_told_and_journaled(config: dict[str, Any]) -> None:
    """A batch of one frame, one step, the largest eps and learning rate, and no clipping: a plain gradient."""
    training = {"local_steps": 1, "batch_size": 1, "eps": 1e-2, "weight_decay": 0, "betas": (0.0, 0.999)}
    asked = plan({**training, "grad_clip_norm": 1e30}, lr=1e4, mu=0.0).model_dump_json()
    found = answer("train", config, plan=asked)
    assert list(found) == ["refusal"]
    for part in ("lr 10000", "training.eps 0.01", "training.betas", "grad_clip_norm 1e+30", "batch_size 1", "1 frames"):
        assert part in found["refusal"]
    scratch = Path(config["scratch"])
    assert "limits do not allow" in (scratch / "client.log").read_text()
    (sent,) = SentJournal(scratch / "sent.jsonl").read()
    assert json.loads(sent.text) == found
    assert json.loads(sent.asked)["training"]["eps"] == 0.01
    assert len(sent.asked_digest) == 64
    lines = asked_lines([sent])
    assert "lr 10000.0" in lines[0]
    assert "batch_size 1" in lines[0]
    assert lines[1].startswith("refused train: the server asks for")


NO_PLANS = ["[]", "x", "[" * 100_000, '{"terms": 1, "round": 10e400}', '{"round": true}']
NESTED = [f'{{"a": {"[" * depth}{"]" * depth}}}' for depth in (200, 400, 600, 800, 900, 950, 990)]


@pytest.mark.parametrize("asked", [*NO_PLANS, *NESTED])
def test_requests_that_are_no_plan(asked: str, config: dict[str, Any]) -> None:
    assert list(answer("train", config, plan=asked)) == ["refusal"]
    (sent,) = SentJournal(Path(config["scratch"]) / "sent.jsonl").read()
    assert (sent.to, sent.round) == ("unknown", None)


def member(train: int, held_out: int, frames: int) -> Member:
    moments = {"count": frames, "mean": [0.0], "std": [0.0], "min": [0.0], "max": [0.0]}
    return Member.model_validate(
        {
            "client": "a", "dataset": "d", "report": {"dataset": "d", "root": ""},
            "split": {"train": tuple(range(train)), "held_out": tuple(range(train, train + held_out))},
            "train_frames": frames, "statistics": {"state": moments, "action": moments},
            "train_digests": (), "held_out_digests": (),
        }
    )  # fmt: skip


def test_the_first_session_fixes_the_held_out_episodes(config: dict[str, Any]) -> None:
    check_member(member(11, 1, 400), terms(), config)
    check_terms(terms(), config)
    with pytest.raises(FederationError, match="holdout_episodes 2, 1 as in the first session"):
        check_terms(terms(holdout=2), config)
    with pytest.raises(FederationError, match="holdout_episodes 2"):
        check_plan(plan(terms=terms(holdout=2)), config)
    check_terms(terms("another", holdout=2), config | {LIMITS: NodeLimits(fixed_holdout=False).model_dump_json()})


def statistics(mean: float = 0.0, std: float = 1.0) -> Statistics:
    moments = {"count": 9, "mean": (mean,) * 6, "std": (std,) * 6, "min": (mean - 1,) * 6, "max": (mean + 1,) * 6}
    return Statistics(state=Moments(**moments), action=Moments(**moments))


CHANGED: dict[str, Any] = {
    "statistics with digest [0-9a-f]{16}, the own ones as": evaluation(statistics=statistics()),
    "evaluation.every_frames 5, 4 as": evaluation(every_frames=5),
    "evaluation.times 9, 8 as": evaluation(times=9),
    "seed 2, 1 as": evaluation(terms=terms().model_copy(update={"seed": 2})),
    "evaluation.every_frames 3, 4 as": FeaturePlan(**common(), every_frames=3),
    "evaluation.times 7, 8 as": joining_report(times=7),
    'data.repair "repair", "refuse" as': evaluation(
        terms=terms().model_copy(update={"data": DataSettings(holdout_episodes=1, repair="repair")})
    ),
    "recipe.seed 2, 1 as": plan(recipe=common()["recipe"].model_copy(update={"seed": 2})),
    r'recipe.cameras \["overhead"\], \["overhead", "wrist"\] as': plan(**recipe("tiny")),
    r'contract.joints \["a", "b", "c", "d", "e", "f"\], .* as': plan(
        terms=terms().model_copy(update={"contract": ContractSettings(joints=tuple("abcdef"))})
    ),
}


@pytest.mark.parametrize("what", CHANGED)
def test_a_session_stays_as_in_its_first_request(what: str, config: dict[str, Any]) -> None:
    check_terms(terms(), config)
    check_plan(plan(), config)
    check_plan(FeaturePlan(**common(), every_frames=None), config)
    for _ in range(2):
        check_plan(evaluation(), config)
    with pytest.raises(FederationError, match=rf"{what} in the first request of this session is allowed"):
        check_plan(CHANGED[what], config)
    check_plan(FeaturePlan(**common(), every_frames=4), config)
    check_plan(joining_report(), config)
    check_plan(CHANGED[what], config | {LIMITS: NodeLimits(fixed_session=False).model_dump_json()})
    other = CHANGED[what].terms.model_copy(update={"session": "another"})
    check_plan(CHANGED[what].model_copy(update={"terms": other}), config)


def test_statistics_stay_as_in_the_first_plan(config: dict[str, Any]) -> None:
    """Evaluations of the same weights with several means would show how recorded actions are distributed."""
    asked = [evaluation(statistics=statistics(mean, 1e-3)) for mean in (0.0, 5.0)]
    check_plan(plan(statistics=statistics(0.0, 1e-3)), config)
    check_plan(asked[0], config)
    check_plan(evaluation(statistics=statistics(0.0, 1e-3 * (1 + 1e-13))), config)  # of a resumed session
    for other in (asked[1], evaluation(), evaluation(statistics=statistics(0.0, 1.001e-3))):
        with pytest.raises(FederationError, match=r"statistics .*, with digest [0-9a-f]{16} as in the first request"):
            check_plan(other, config)
    found = answer("evaluate", config, plan=asked[1].model_dump_json())
    assert "statistics with digest" in found["refusal"]


def test_the_journal_names_statistics_by_their_digest(config: dict[str, Any]) -> None:
    wide = [evaluation(statistics=found, times=10**6) for found in (statistics(0.0), statistics(5.0), None)]
    texts = [one.model_dump_json() for one in wide]
    for text in (*texts, texts[0].replace('"mean":[0.0,0.0', '"mean":[0,0'), json.dumps({"statistics": [1]})):
        answer("evaluate", config, plan=text)
    journal = SentJournal(Path(config["scratch"]) / "sent.jsonl").read()
    asked = [json.loads(sent.asked)["statistics"] for sent in journal]
    assert asked == [*(statistics_label(one.statistics) for one in wide), asked[0], asked[4]]
    assert len(set(asked)) == 4
    lines = asked_lines(journal)
    for label in asked[:3]:
        assert sum(line.endswith(f"statistics {label} (rounds 1)") for line in lines) == 1, lines


def test_a_session_may_not_join_again_with_another_seed(config: dict[str, Any]) -> None:
    check_terms(terms(), config)
    with pytest.raises(FederationError, match="seed 3, 1 as in the first request of this session is allowed"):
        check_terms(terms().model_copy(update={"seed": 3}), config)


def test_a_refused_request_fixes_nothing_and_old_sessions_are_forgotten(config: dict[str, Any]) -> None:
    with pytest.raises(FederationError, match=r"evaluation\.times"):
        check_plan(evaluation(times=10**6, every_frames=7), config)
    state_file = Path(config["scratch"]) / "limits_state.json"
    assert not state_file.exists()
    check_plan(evaluation(terms=terms("s0")), config)
    state = json.loads(state_file.read_text())
    state["sessions"] = {f"s{number}": state["sessions"]["s0"] for number in range(200)}
    state_file.write_text(json.dumps(state))
    check_plan(evaluation(terms=terms("s0")), config)
    assert json.loads(state_file.read_text())["sessions"] == state["sessions"]
    check_plan(evaluation(terms=terms("s200")), config)
    assert list(json.loads(state_file.read_text())["sessions"]) == [f"s{number}" for number in range(1, 201)]
    assert state_file.stat().st_size < 400_000


def test_a_changed_evaluation_is_refused_told_and_journaled(config: dict[str, Any]) -> None:
    check_plan(evaluation(), config)
    found = answer("evaluate", config, plan=evaluation(every_frames=5).model_dump_json())
    assert "evaluation.every_frames 5, 4 as in the first request of this session" in found["refusal"]
    scratch = Path(config["scratch"])
    assert "evaluation.every_frames 5, 4 as" in (scratch / "client.log").read_text()
    (sent,) = SentJournal(scratch / "sent.jsonl").read()
    assert json.loads(sent.text) == found
    assert json.loads(sent.asked)["every_frames"] == 5


def test_statistics_of_few_episodes_or_frames(config: dict[str, Any]) -> None:
    with pytest.raises(FederationError, match="11 of 12 episodes held out"):
        check_member(member(1, 11, 400), terms(holdout=11), config)
    with pytest.raises(FederationError, match="statistics of 9 frames"):
        check_member(member(3, 1, 9), terms(), config)
    strict = config | {LIMITS: NodeLimits(min_statistics_episodes=4).model_dump_json()}
    with pytest.raises(FederationError, match="statistics of 3 episodes"):
        check_member(member(3, 1, 90), terms(), strict)


def test_few_frames_in_epochs(config: dict[str, Any]) -> None:
    check_epochs(plan({"local_epochs": 2}), 128, config)
    check_epochs(plan({"local_steps": 32, "batch_size": 8}), 10, config)
    with pytest.raises(FederationError, match="255 frames in the epochs of a round, at least 256 is allowed"):
        check_epochs(plan(), 255, config)
    del config[LIMITS]
    check_epochs(plan(), 1, config)


def test_the_score_of_one_frame(config: dict[str, Any]) -> None:
    def score(frames: int) -> SetScore:
        episode = {"episode": 1, "frames": frames, "actions": 3, "policy_loss": 1.0, "action_error_degrees": 1.0}
        return SetScore.model_validate(
            {
                "dataset": "d", "episodes": (episode,), "frames": frames, "policy_loss": 1.0, "policy_loss_se": None,
                "action_error_degrees": 1.0, "joint_error_degrees": (), "horizon_error_degrees": (),
            }
        )  # fmt: skip

    check_score(score(3), config)
    with pytest.raises(FederationError, match="a score of 1 frame"):
        check_score(score(1), config)


def test_a_revision_that_the_node_allows(config: dict[str, Any]) -> None:
    limits = NodeLimits(policies=("lerobot/smolvla_base@v2",)).model_dump_json()
    check_plan(plan(**recipe("lerobot/smolvla_base", revision="v2")), config | {LIMITS: limits})
    with pytest.raises(FederationError, match="policy 'lerobot/smolvla_base', one of lerobot/smolvla_base@v2"):
        check_plan(plan(**recipe("lerobot/smolvla_base")), config | {LIMITS: limits})


def test_a_node_that_sends_sums_only(config: dict[str, Any]) -> None:
    """A server may announce secure aggregation, and ask for an update or a score by itself."""
    only = config | {LIMITS: NodeLimits(secure_only=True).model_dump_json()}
    for asked in (plan(), evaluation(), joining_report()):
        check_plan(asked, config)
        with pytest.raises(FederationError, match="by itself, only a sum of several nodes' updates is allowed"):
            check_plan(asked, only)
    for neighbors in (10, None):
        check_plan(plan(secure=SecureRules(bits=16, neighbors=neighbors, limit=0.004, max_share_factor=3.0)), only)
    check_plan(FeaturePlan(**common(), every_frames=None), only)


@pytest.mark.parametrize(("neighbors", "text"), [(10, "10"), (None, "all")])
def test_the_audit_shows_whether_an_update_was_asked_for_in_a_sum(
    config: dict[str, Any], neighbors: int | None, text: str
) -> None:
    rules = SecureRules(bits=16, neighbors=neighbors, limit=0.004, max_share_factor=3.0)
    for asked in (plan(lr=5.0, secure=rules), plan(lr=5.0)):
        assert list(answer("train", config, plan=asked.model_dump_json())) == ["refusal"]
    in_a_sum, by_itself, refused = asked_lines(SentJournal(Path(config["scratch"]) / "sent.jsonl").read())
    assert "lr 5.0" in in_a_sum
    assert f"in a secure sum, neighbors {text}" in in_a_sum
    assert in_a_sum.replace(f", in a secure sum, neighbors {text}", "") == by_itself
    assert refused.startswith("refused train: ")


def test_requests_of_each_kind_a_day(config: dict[str, Any]) -> None:
    few = config | {LIMITS: NodeLimits(max_rounds_per_day=2).model_dump_json()}
    features = FeaturePlan(**common(), every_frames=None)
    ordinary = [(one, "") for one in (plan(), evaluation(), joining_report(), features)]
    for asked, work in (*ordinary, (plan(), "take part in secure_mask")):
        check_plan(asked, few, work)
        check_plan(asked, few, work)
        with pytest.raises(FederationError, match=rf"3 requests to {work}.* in 24 hours, at most 2"):
            check_plan(asked, few, work)
    check_terms(terms(), few)
    check_terms(terms(), few)
    with pytest.raises(FederationError, match="3 requests to join in 24 hours"):
        check_terms(terms(), few)


def test_refused_requests_do_not_fill_the_disk(config: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever they are, the node journals as many a day as its limit, and reads no other request after them."""
    few = config | {LIMITS: NodeLimits(max_refusals_per_day=3).model_dump_json()}
    journal, wrong = Path(config["scratch"]) / "sent.jsonl", plan(lr=1e4).model_dump_json()
    for kind, request in (("train", {"plan": wrong}), ("evaluate", {"plan": "["}), ("query", {"terms": "x"})):
        assert list(answer(kind, few, **request)) == ["refusal"]
    size = journal.stat().st_size
    for kind in ("train", "evaluate", "query", f"query.{RECEIPTS}"):
        found = answer(kind, few, plan=plan().model_dump_json(), terms=terms().model_dump_json())
        assert re.match(r"3 requests were refused in 24 hours, at most 3 .* before \d{4}-.* UTC$", found["refusal"])
    assert journal.stat().st_size == size
    tomorrow = time.time() + 86_500
    monkeypatch.setattr(time, "time", lambda: tomorrow)
    assert "limits do not allow" in answer("train", few, plan=wrong)["refusal"]
    assert len(SentJournal(journal).read()) == 4


def test_hours_of_a_round(config: dict[str, Any]) -> None:
    clock = round_clock(config | {LIMITS: NodeLimits(max_round_hours=1e-9).model_dump_json()})
    time.sleep(0.01)
    with pytest.raises(FederationError, match="a round of more than"):
        clock()
    round_clock(config)()


def test_the_size_of_the_nodes_folder(config: dict[str, Any]) -> None:
    """Updates of sessions that never end, or videos, fill the disk up to the limit only."""
    check_plan(plan(), config)
    folder = Path(config["scratch"]) / "sessions" / "x"
    folder.mkdir(parents=True)
    with (folder / "round-001.safetensors").open("wb") as file:
        file.truncate(100_100_000_000)
    for asked in (plan(), evaluation(), joining_report()):
        with pytest.raises(
            FederationError, match="100 GB in this node's folder and recordings, at most 100 is allowed"
        ):
            check_plan(asked, config)


def test_a_long_text_does_not_hide_what_was_asked(config: dict[str, Any]) -> None:
    cameras = tuple(f"c{n}" + "x" * 900 for n in range(64))
    contract = ContractSettings(joints=tuple("j" * 900 for _ in range(1024)))
    long = terms().model_copy(update={"contract": contract})
    asked = plan({"batch_size": 1}, terms=long, **recipe("p" * 4000, cameras), lr=5e5)
    assert list(answer("train", config, plan=asked.model_dump_json())) == ["refusal"]
    (sent,) = SentJournal(Path(config["scratch"]) / "sent.jsonl").read()
    assert len(sent.asked) < 20_000
    assert "lr 500000.0" in asked_lines([sent])[0]
    assert json.loads(sent.asked)["recipe"]["cameras"][-1] == "44 more"


def test_a_node_keeps_its_limits(tmp_path: Path) -> None:
    node, file = NodeFolder(tmp_path / "client"), tmp_path / "mine.toml"
    assert node.read_limits() == NodeLimits()
    file.write_text('policies = ["base"]\nmin_batch_frames = 32\n')
    node.install_limits(file)
    assert node.read_limits() == NodeLimits(policies=("base",), min_batch_frames=32)
    for wrong, reason in (("max_lrr = 1", "max_lrr: Extra inputs"), ("max_lr = -1", "max_lr: "), ("x", "not a TOML")):
        file.write_text(wrong)
        with pytest.raises(SettingsError, match=reason):
            node.install_limits(file)
    assert node.read_limits().min_batch_frames == 32

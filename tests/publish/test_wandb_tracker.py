"""Tracking with the real client, offline; the run is read back from its file."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from scipy import stats

from zk0.errors import PublishError
from zk0.publish.round_values import round_values
from zk0.publish.wandb_tracker import open_wandb_tracker
from zk0.records import (
    ClientEvaluation,
    ClientMetrics,
    ClientScore,
    Contribution,
    Rollout,
    RoundDecision,
    RoundRecord,
    Update,
)
from zk0.settings.loading import parse_session
from zk0.settings.session import Session

NAME = "2026-11-22_10-00-00_arms"


@pytest.fixture
def session() -> Session:
    return parse_session(
        {
            "clients": [{"name": "a", "dataset": "local:/home/someone/arm"}, {"name": "b", "dataset": "x/b"}],
            "evaluation": {"datasets": [{"dataset": "lab/unseen"}]},
            "tracking": {"wandb": "offline", "project": "arms"},
        },
        "here",
    )


def trained(record: RoundRecord) -> RoundRecord:
    """The round with an update of a and the held-out loss of b."""
    metrics = ClientMetrics(
        policy_loss=0.5, fedprox_loss=0.01, grad_norm=1.5, update_norm=0.7, local_steps=40, lr_first=2.3e-4,
        lr_last=1e-6, seconds=9.0,
    )  # fmt: skip
    update = Update(
        client="a", round=record.round, global_digest="", path="", digest="", bytes=1, examples=7, dataset="x/a",
        metrics=metrics,
    )  # fmt: skip
    number = record.round
    assert record.evaluation is not None
    held_out = ClientScore(client="b", score=record.evaluation.sets[0])
    return record.model_copy(
        update={
            "decision": RoundDecision(round=number, lr=2e-4, mu=0.01, client_lr_factors={"a": 1.15}, reason="cosine"),
            "updates": (update,),
            "contributions": (Contribution(client="a", weight=1.0, update_norm=0.7, cosine_to_mean=None),),
            "client_evaluation": ClientEvaluation(
                round=number, scores=(held_out,), refusals=(), normalization="pooled", seed=1, times=8, seconds=1.0
            ),
            "stage_seconds": {"train": 3.0, "clients evaluate": 1.0},
        }
    )


def test_keys_of_a_round(evaluated_rounds: Any) -> None:
    values = round_values(trained(evaluated_rounds(3)[3]))
    assert values["server_policy_loss"] == pytest.approx(2.0 - 0.03 + 0.25 + 0.001 * 10 / 6)
    assert values["server_lab/unseen_policy_loss"] == values["server_policy_loss"]
    spread = [0.1 * i + 0.001 * (3 * i % 5) for i in range(6)]
    half_width = stats.t.ppf(0.975, 5) * stats.sem(spread)
    ends = values["server_policy_loss_lower"], values["server_policy_loss_upper"]
    assert ends == pytest.approx([values["server_policy_loss"] + sign * half_width for sign in (-1, 1)])
    assert (values["server_lr"], values["server_mu"], values["server_adaptive_factor"]) == (2e-4, 0.01, 1.0)
    assert (values["client_a_lr"], values["client_a_adaptive_factor"]) == (2.3e-4, 1.15)
    assert values["client_a_policy_loss"] == 0.5
    assert values["client_b_held_out_policy_loss"] == values["server_policy_loss"]
    assert values["server_clients_evaluate_seconds"] == 1.0
    assert "client_a_cosine_to_mean" not in values
    assert all(key.startswith(("server_", "client_")) for key in values)


def test_success_rate_and_losses_of_clients(evaluated_rounds: Any) -> None:
    record = trained(evaluated_rounds(3)[3])
    common = {"checkpoint": "c", "task": "lift", "conditions_digest": "d", "steps": 9, "duration_seconds": 1.0}
    rollouts = [
        Rollout(round=number, seed=seed, success=seed < successes, fps=10, smoothness=None, **common)
        for number, successes in ((0, 1), (3, 3))
        for seed in range(4)
    ]
    values = round_values(record, rollouts)
    assert (values["server_success_rate"], values["server_attempts"]) == (0.75, 4)
    assert (values["server_success_rate_lower"], values["server_success_rate_upper"]) == pytest.approx(
        (0.301, 0.954), abs=1e-3
    )
    assert values["server_start_success_rate"] == 0.25
    assert (values["client_a_mu"], values["server_avg_client_loss"], values["server_std_client_loss"]) == (0.01, 0.5, 0)
    assert values["server_generalization_gap"] == 0, "the client holds out what nobody trains on"
    assert "server_success_rate" not in round_values(record)
    earlier = record.model_copy(update={"updates": (record.updates[0].model_copy(update={"round": 2}),)})
    assert not {"client_a_mu", "client_a_adaptive_factor"} & round_values(earlier).keys(), "those of round 2 are meant"
    assert "client_a_lr" in round_values(earlier)


def test_missing_values_have_no_key(evaluated_rounds: Any) -> None:
    values = round_values(evaluated_rounds(1)[1].model_copy(update={"evaluation": None}))
    assert not [key for key in values if "loss" in key or "lr" in key]
    assert values["server_num_clients"] == 0


def written(folder: Path) -> list[Any]:
    """Messages in the file of an offline run: LevelDB's log format after a header of seven bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    (file,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    data, at, text = file.read_bytes(), 7, b""
    found = []
    while at + 7 <= len(data):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        text += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a full record, or the last part of one
            found.append(Record.FromString(text))
            text = b""
    return found


def rows(messages: list[Any]) -> list[dict[str, Any]]:
    return [
        {(item.key or "/".join(item.nested_key)): json.loads(item.value_json) for item in m.history.item}
        for m in messages
        if m.WhichOneof("record_type") == "history"
    ]


@pytest.fixture
def flushed() -> Iterator[Any]:
    """Function that ends the client's background process, which flushes its data."""
    import wandb

    yield wandb.teardown
    wandb.teardown()


def test_a_session_is_one_run(
    session: Session, evaluated_rounds: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flushed: Any
) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))  # no account
    history = [evaluated_rounds(3)[0], *map(trained, evaluated_rounds(3)[1:])]
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        folder.mkdir()

    def interrupted() -> None:
        with open_wandb_tracker(session, NAME, first, None) as run:
            assert run.log_rounds(history[:1]) == 1
            assert run.log_rounds(history[:3]) == 2
            assert run.log_rounds(history[:3]) == 0
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    flushed()
    with open_wandb_tracker(session, NAME, second, None) as run:  # resumed, in another folder to tell the files apart
        run.log_rounds(history)
    flushed()
    messages = written(first)
    run_message = next(m.run for m in messages if m.WhichOneof("record_type") == "run")
    assert (run_message.run_id, run_message.project, run_message.display_name) == (NAME, "arms", NAME)
    config = {c.key: json.loads(c.value_json) for c in run_message.config.update}
    assert config["training"]["proximal_mu"] == 0.01
    assert [c["dataset"] for c in config["clients"]] == ["local:arm", "x/b"]
    assert [row["_step"] for row in rows(messages)] == [0, 1, 2]
    expected = round_values(history[2])
    assert {k: v for k, v in rows(messages)[2].items() if not k.startswith("_")} == pytest.approx(expected)
    assert [m.exit.exit_code for m in messages if m.WhichOneof("record_type") == "exit"] == [1]
    again = written(second)
    assert next(m.run for m in again if m.WhichOneof("record_type") == "run").run_id == NAME
    assert [row["_step"] for row in rows(again)] == [0, 1, 2, 3]
    everything = b"".join(f.read_bytes() for f in tmp_path.rglob("*.wandb"))
    assert b"/home/someone" not in everything


def test_online_without_a_key_fails_when_the_run_is_opened(
    session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flushed: Any
) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    online = session.tracking.model_copy(update={"wandb": "online"})
    with_tracking = session.model_copy(update={"tracking": online})
    message = r"Weights & Biases: .*expected WANDB_API_KEY"
    with pytest.raises(PublishError, match=message) as found, open_wandb_tracker(with_tracking, NAME, tmp_path, None):
        pass
    assert "\n" not in str(found.value)

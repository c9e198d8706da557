"""Tracking by the real client, offline; what it wrote is read back from its file with its own messages."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from zk0.errors import PublishError
from zk0.publish.tracker import open_tracker, round_values, tracker
from zk0.records import ClientEvaluation, ClientMetrics, ClientScore, Contribution, Decision, RoundRecord, Update
from zk0.session import Session, parse_session

NAME = "2026-11-22_10-00-00_arms"


@pytest.fixture
def session() -> Session:
    return parse_session(
        {
            "clients": [{"name": "a", "dataset": "local:/home/someone/arm"}, {"name": "b", "dataset": "x/b"}],
            "evaluation": {"datasets": [{"dataset": "lab/judge"}]},
            "tracking": {"wandb": "offline", "project": "arms"},
        },
        "here",
    )


def trained(record: RoundRecord) -> RoundRecord:
    """The round with an update of a, and what b holds out."""
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
            "decision": Decision(round=number, lr=2e-4, mu=0.01, client_lr_factors={"a": 1.15}, reason="cosine"),
            "updates": (update,),
            "contributions": (Contribution(client="a", weight=1.0, update_norm=0.7, cosine_to_mean=None),),
            "client_evaluation": ClientEvaluation(
                round=number, scores=(held_out,), refusals=(), normalization="pooled", seed=1, times=8, seconds=1.0
            ),
            "stage_seconds": {"train": 3.0, "clients evaluate": 1.0},
        }
    )


def test_keys_of_a_round(judged_rounds: Any) -> None:
    values = round_values(trained(judged_rounds(3)[3]))
    assert values["server_policy_loss"] == pytest.approx(2.0 - 0.03 + 0.25 + 0.001 * 10 / 6)
    assert values["server_lab/judge_policy_loss"] == values["server_policy_loss"]
    assert (values["server_lr"], values["server_mu"], values["server_adaptive_factor"]) == (2e-4, 0.01, 1.0)
    assert (values["client_a_lr"], values["client_a_adaptive_factor"]) == (2.3e-4, 1.15)
    assert values["client_a_policy_loss"] == 0.5
    assert values["client_b_held_out_policy_loss"] == values["server_policy_loss"]
    assert values["server_clients_evaluate_seconds"] == 1.0
    assert "client_a_cosine_to_mean" not in values
    assert all(key.startswith(("server_", "client_")) for key in values)


def test_what_was_not_measured_has_no_key(judged_rounds: Any) -> None:
    values = round_values(judged_rounds(1)[1].model_copy(update={"evaluation": None}))
    assert not [key for key in values if "loss" in key or "lr" in key]
    assert values["server_num_clients"] == 0


def written(folder: Path) -> list[Any]:
    """The messages in the one file of an offline run: LevelDB's log format, after seven bytes of the client's own."""
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
        if kind in (1, 4):  # whole, or the last piece
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
    """Ends the client's own process, which writes what it still holds."""
    import wandb

    yield wandb.teardown
    wandb.teardown()


def test_a_session_is_one_run(
    session: Session, judged_rounds: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flushed: Any
) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))  # no account
    history = [judged_rounds(3)[0], *map(trained, judged_rounds(3)[1:])]
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        folder.mkdir()

    def disturbed() -> None:
        with open_tracker(session, NAME, first, None) as run:
            assert tracker(NAME) is run
            assert run.follow(history[:1]) == 1
            assert run.follow(history[:3]) == 2
            assert run.follow(history[:3]) == 0
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        disturbed()
    flushed()
    with open_tracker(session, NAME, second, None) as run:  # taken up, from another folder for the test's sake
        run.follow(history)
    flushed()
    with pytest.raises(PublishError, match="no run of Weights & Biases is open"):
        tracker(NAME)

    messages = written(first)
    begun = next(m.run for m in messages if m.WhichOneof("record_type") == "run")
    assert (begun.run_id, begun.project, begun.display_name) == (NAME, "arms", NAME)
    config = {c.key: json.loads(c.value_json) for c in begun.config.update}
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


def test_online_without_a_key_is_told_before_anything_is_trained(
    session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flushed: Any
) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    online = session.tracking.model_copy(update={"wandb": "online"})
    asked = session.model_copy(update={"tracking": online})
    said = r"Weights & Biases: .*expected WANDB_API_KEY"
    with pytest.raises(PublishError, match=said) as found, open_tracker(asked, NAME, tmp_path, None):
        pass
    assert "\n" not in str(found.value)

"""MLflow and TensorBoard: a session is one run, a resumed session goes on with it, and nothing is lost or doubled."""

import json
import struct
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from zk0.errors import PublishError, TrackerUnavailable
from zk0.publish.mlflow_tracker import MLFLOW_TOKEN
from zk0.publish.round_values import round_values
from zk0.publish.tensorboard_tracker import EVENT_FILE, TENSORBOARD_FOLDER, TensorBoardTracker, crc32c
from zk0.publish.trackers import current_trackers, open_trackers
from zk0.publish.wandb_tracker import WANDB_KEY
from zk0.settings.loading import parse_session
from zk0.settings.session import Session

NAME = "2026-11-22_10-00-00_arms"


def session(**tracking: Any) -> Session:
    clients = [{"name": "a", "dataset": "local:/home/someone/arm"}, {"name": "b", "dataset": "x/b"}]
    evaluation = {"datasets": [{"dataset": "lab/unseen"}]}
    return parse_session({"clients": clients, "evaluation": evaluation, "tracking": tracking}, "here")


def events(file: Path) -> list[tuple[int, dict[str, float]]]:
    """Step and scalars of every event, read by protobuf's own parser of the wire format."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    described = descriptor_pb2.FileDescriptorProto(name="event.proto", package="tb", syntax="proto3")
    fields = {
        "Value": [("tag", 1, 9, ""), ("simple_value", 2, 2, "")],
        "Summary": [("value", 1, 11, ".tb.Value")],
        "Event": [
            ("wall_time", 1, 1, ""),
            ("step", 2, 3, ""),
            ("file_version", 3, 9, ""),
            ("summary", 5, 11, ".tb.Summary"),
        ],
    }
    for name, members in fields.items():
        message = described.message_type.add(name=name)
        for field, number, kind, type_name in members:
            label = 3 if name == "Summary" else 1
            message.field.add(name=field, number=number, type=kind, label=label, type_name=type_name or None)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(described)
    event_class: Any = message_factory.GetMessageClass(pool.FindMessageTypeByName("tb.Event"))
    data, at, found = file.read_bytes(), 0, []
    while at < len(data):
        (length,) = struct.unpack_from("<Q", data, at)
        for start, size in ((at, 8), (at + 12, length)):
            (stored,) = struct.unpack_from("<I", data, start + size)
            rotated = (stored - 0xA282EAD8) & 0xFFFFFFFF
            assert crc32c(data[start : start + size]) == (rotated >> 17 | rotated << 15) & 0xFFFFFFFF
        event = event_class.FromString(data[at + 12 : at + 12 + length])
        found.append((event.step, {v.tag: v.simple_value for v in event.summary.value}))
        assert event.wall_time > 0
        at += 16 + length
    return found


def test_tensorboard_has_each_round_once(tmp_path: Path, evaluated_rounds: Any) -> None:
    history = evaluated_rounds(3)
    file = tmp_path / TENSORBOARD_FOLDER / EVENT_FILE
    first = TensorBoardTracker(tmp_path)
    assert (first.log_rounds(history[:2]), first.log_rounds(history[:2])) == (2, 0)
    whole = file.read_bytes()
    file.write_bytes(whole + whole[:30])  # a process that was killed while it wrote
    assert TensorBoardTracker(tmp_path).log_rounds(history) == 2
    (_, nothing), *rounds = events(file)
    assert nothing == {}
    assert [step for step, _ in rounds] == [0, 1, 2, 3]
    assert rounds[2][1] == pytest.approx(round_values(history[2]), rel=1e-6)
    assert file.read_bytes().startswith(whole)
    damaged = bytearray(whole)
    damaged[40] ^= 1
    file.write_bytes(damaged)
    with pytest.raises(PublishError, match="begins no event"):
        TensorBoardTracker(tmp_path)


class MlflowStore(BaseHTTPRequestHandler):
    """As much of MLflow's REST API 2.0 as a session needs; keeps one experiment and its runs in memory."""

    experiments: dict[str, str]
    runs: dict[str, dict[str, Any]]

    def do_GET(self) -> None:
        name = self.path.partition("experiment_name=")[2]
        if name not in self.experiments:
            self._answer(404, {"error_code": "RESOURCE_DOES_NOT_EXIST"})
            return
        self._answer(200, {"experiment": {"experiment_id": self.experiments[name]}})

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.headers["Authorization"] != "Bearer mlflow-secret":
            self._answer(401, {"error_code": "UNAUTHENTICATED"})
            return
        name = self.path.removeprefix("/api/2.0/mlflow/").replace("/", "_").replace("-", "_")
        self._answer(200, getattr(self, name)(asked))

    def experiments_create(self, asked: dict[str, Any]) -> dict[str, Any]:
        self.experiments[asked["name"]] = "7"
        return {"experiment_id": "7"}

    def runs_search(self, asked: dict[str, Any]) -> dict[str, Any]:
        wanted = asked["filter"].split("'")[1]
        runs = [r for r in self.runs.values() if {"key": "zk0_session", "value": wanted} in r["tags"]]
        latest = [{"metrics": [{"key": "round", "value": m["step"]} for m in r["metrics"][-1:]]} for r in runs]
        return {"runs": [{"info": {"run_id": r["id"]}, "data": d} for r, d in zip(runs, latest, strict=True)]}

    def runs_create(self, asked: dict[str, Any]) -> dict[str, Any]:
        made = asked | {"id": f"run-{len(self.runs)}", "metrics": [], "params": [], "status": "RUNNING"}
        self.runs[made["id"]] = made
        return {"run": {"info": {"run_id": made["id"]}, "data": {}}}

    def runs_log_batch(self, asked: dict[str, Any]) -> dict[str, Any]:
        for kind in ("metrics", "params"):
            self.runs[asked["run_id"]][kind] += asked.get(kind, [])
        return {}

    def runs_update(self, asked: dict[str, Any]) -> dict[str, Any]:
        self.runs[asked["run_id"]]["status"] = asked["status"]
        return {}

    def _answer(self, code: int, content: dict[str, Any]) -> None:
        body = json.dumps(content).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def mlflow() -> Iterator[tuple[str, dict[str, dict[str, Any]]]]:
    """Address and runs of a server on loopback."""
    runs: dict[str, dict[str, Any]] = {}
    handler = type("Store", (MlflowStore,), {"experiments": {}, "runs": runs})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", runs
        server.shutdown()
        thread.join()


SECRETS = {WANDB_KEY: None, MLFLOW_TOKEN: SecretStr("mlflow-secret")}


def test_a_session_is_one_run_of_mlflow_and_of_tensorboard(mlflow: Any, tmp_path: Path, evaluated_rounds: Any) -> None:
    address, runs = mlflow
    history, tracked = evaluated_rounds(3), session(mlflow=address, tensorboard=True, project="arms")
    assert tracked.tracking.services == (f"MLflow at {address}", "TensorBoard")

    def interrupted() -> None:
        with open_trackers(tracked, NAME, tmp_path, SECRETS) as trackers:
            assert current_trackers(NAME) == trackers
            assert [t.log_rounds(history[:2]) for t in trackers] == [2, 2]
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    (run,) = runs.values()
    assert (run["status"], run["run_name"]) == ("FAILED", NAME)
    with pytest.raises(PublishError, match="no tracker is open"):
        current_trackers(NAME)
    with open_trackers(tracked, NAME, tmp_path, SECRETS) as trackers:
        assert [t.log_rounds(history) for t in trackers] == [2, 2]
    (run,) = runs.values()
    assert run["status"] == "FINISHED"
    found: dict[int, dict[str, float]] = {}
    for metric in run["metrics"]:
        assert metric["key"] not in found.setdefault(metric["step"], {})
        found[metric["step"]][metric["key"]] = metric["value"]
    assert list(found) == [0, 1, 2, 3]
    assert found[2] == pytest.approx(round_values(history[2]) | {"round": 2})
    settings = {p["key"]: p["value"] for p in run["params"]}
    assert settings["training.lr"] == str(tracked.training.lr)
    assert "/home/someone" not in json.dumps(run)


def test_an_mlflow_server_that_refuses_or_is_not_there(mlflow: Any, tmp_path: Path) -> None:
    address, _ = mlflow
    for where, error, message in (
        (address, PublishError, "experiments/create answered 401"),
        ("http://127.0.0.1:9", TrackerUnavailable, "is the server running"),
    ):
        with (
            pytest.raises(error, match=f"MLflow at {where}: .*{message}"),
            open_trackers(session(mlflow=where), NAME, tmp_path, {WANDB_KEY: None, MLFLOW_TOKEN: None}),
        ):
            pass


def test_without_services_nothing_is_tracked() -> None:
    assert session().tracking.services == ()
    assert session(wandb="offline").tracking.services == ("Weights & Biases (offline)",)

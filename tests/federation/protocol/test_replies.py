"""Answers that are invalid, come twice or late are refused with the reason, and no finished update is lost."""

import errno
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from zk0.client.round_state import session_state_folder
from zk0.errors import TransientError
from zk0.federation.engines.local import LocalGrid
from zk0.federation.protocol.collect import Federation
from zk0.federation.protocol.sent_log import SENT_JOURNAL
from zk0.settings.session import Session


class GridWrapper:
    """A grid that passes everything to an engine."""

    def __init__(self, grid: Any) -> None:
        self._grid = grid

    def __getattr__(self, name: str) -> Any:
        return getattr(self._grid, name)


class TamperingGrid(GridWrapper):
    """Changes the answer of client a."""

    change: Callable[[dict], None] | None = None

    def pull_messages(self, ids: Any) -> list[Any]:
        from flwr.app import ConfigRecord, RecordDict

        replies = self._grid.pull_messages(ids)
        for reply in replies:
            answer = reply.content["answer"]
            if self.change and "update" in answer:
                values = json.loads(answer["update"])
                if values["client"] == "a":
                    values["path"] = answer["weights-path"]
                    self.change(values)
                    changed = {"update": json.dumps(values), "weights-path": values["path"]}
                    reply.content = RecordDict({"answer": ConfigRecord(changed)})
        return replies


def rewrite(values: dict, change: Callable[[dict[str, np.ndarray]], None]) -> None:
    """Write changed weights to a file of their own, with their digest."""
    from zk0.weights.digests import load_weights
    from zk0.weights.writer import save_weights

    weights = load_weights(Path(values["path"]))
    change(weights)
    values["path"] += ".changed"
    values["digest"], values["bytes"] = save_weights(Path(values["path"]), weights)


def nan(values: dict) -> None:
    rewrite(values, lambda w: w["model.state_proj.bias"].__setitem__(3, np.nan))


def wrong_shape(values: dict) -> None:
    rewrite(values, lambda w: w.update({"model.state_proj.bias": w["model.state_proj.bias"][:-1]}))


def tensor_missing(values: dict) -> None:
    rewrite(values, lambda w: w.pop("model.state_proj.bias"))


def other_file(values: dict, change: Callable[[Path], None]) -> None:
    copy = shutil.copyfile(values["path"], values["path"] + ".changed")
    change(Path(copy))
    values["path"] = str(copy)


def cut(values: dict) -> None:
    other_file(values, lambda file: os.truncate(file, file.stat().st_size // 2))


def bit(values: dict) -> None:
    def flip(file: Path) -> None:
        data = bytearray(file.read_bytes())
        data[-5] ^= 1
        file.write_bytes(data)

    other_file(values, flip)


BAD = {
    "NaN": (nan, r"model.state_proj.bias holds nan", True),
    "wrong shape": (wrong_shape, r"model.state_proj.bias", True),
    "tensor missing": (tensor_missing, r"model.state_proj.bias", True),
    "cut short": (cut, r"not a complete safetensors file", True),
    "one bit": (bit, r"digest [0-9a-f]{12}, expected", True),
    "other round": (lambda v: v.update(round=7), "is of round 7, expected round 1", True),
    "other start": (lambda v: v.update(global_digest="0" * 64), "was trained from weights 000000000000", True),
    "other client": (lambda v: v.update(client="b"), "its answer names client b", True),
    "no file": (lambda v: v.update(path=v["path"] + ".gone"), "its weights file does not exist", False),
    "no update": (lambda v: v.pop("digest"), "its answer is not an update", False),
    "not finite": (lambda v: v["metrics"].update(policy_loss=float("nan")), "its answer is not an update", False),
}


SLOW = [pytest.mark.slow, pytest.mark.timeout(900)]


ENGINES = [pytest.param("local"), *(pytest.param(e, marks=SLOW) for e in ("ray", "deployment"))]
IN_EVERY_ENGINE = ("one bit", "weights cut short")
"""Faults that are tried in every engine; the others, which one `Federation` finds in all engines, in the first only."""
on_the_first_engine = pytest.mark.parametrize("engine", ENGINES[:1], indirect=True, scope="module")


def on_engines(faults: Iterable[str]) -> pytest.MarkDecorator:
    """Return the parameters `engine` and `fault` of a test: each fault in the first engine, some in every one."""
    pairs = [pytest.param(ENGINES[0].values[0], fault) for fault in faults]
    pairs += [pytest.param(*e.values, f, marks=e.marks) for e in ENGINES[1:] for f in faults if f in IN_EVERY_ENGINE]
    return pytest.mark.parametrize(("engine", "fault"), pairs, indirect=["engine"], scope="module")


in_both_modes = pytest.mark.parametrize("mode", ["synchronous", "buffered"])
"""A buffered round takes the updates of all clients."""


@pytest.fixture(scope="module", params=ENGINES)
def engine(request: pytest.FixtureRequest) -> Any:
    """Every engine, with a real SuperLink, too."""
    return request.getfixturevalue(f"{request.param}_engine")


@pytest.fixture(scope="module")
def session(engine: Any) -> Session:
    """A session with one step a round."""
    training = engine.session.training.model_copy(update={"local_steps": 1})
    return engine.session.model_copy(update={"training": training})


class RecordingListener:
    """A ResultListener that records its calls."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def on_request(self, client: str) -> None:
        self.calls.append(f"{client} request")

    def on_reused(self, found: Any) -> None:
        self.calls.append(f"{found.client} reused")

    def on_result(self, found: Any) -> None:
        self.calls.append(f"{found.client} result {type(found).__name__}")


@pytest.fixture
def driven(engine: Any, session: Session, drive: type, tmp_path: Path) -> Any:
    """A session with a name of its own, so that clients do not answer from their disk."""
    found = drive(session, tmp_path, tmp_path.name)
    engine.show_ledger(found)
    return found


@in_both_modes
@on_engines(BAD)
def test_an_invalid_answer_is_refused_and_its_weights_are_kept(fault: str, engine: Any, driven: Any, mode: str) -> None:
    change, reason, keeps_weights = BAD[fault]
    grid = TamperingGrid(engine.grid)
    federation = engine.federation(grid=grid, mode=mode)
    driven.begin(federation)
    grid.change = change
    listener = RecordingListener()
    found = driven.train(federation, listener)
    grid.change = None
    assert [u.client for u in found.updates] == ["b", "c"]
    assert [r.client for r in found.refusals] == ["a"]
    assert listener.calls[:3] == ["a request", "b request", "c request"]
    assert sorted(listener.calls[3:]) == ["a result Refusal", "b result Update", "c result Update"]
    assert re.search(reason, found.refusals[0].reason), found.refusals[0].reason
    names = {p.name for p in driven.spool().iterdir()}
    good = {f"{name}.{kind}" for name in "bc" for kind in ("safetensors", "json")}
    logs = {"refusals.jsonl"} | ({"arrivals.jsonl"} if mode == "buffered" else set())
    assert names == good | logs | ({"a.refused"} if keeps_weights else set())

    listener = RecordingListener()
    again = driven.train(federation, listener)
    assert [u.client for u in again.updates] == ["a", "b", "c"]
    assert sorted(listener.calls[:2]) == ["b reused", "c reused"]
    assert listener.calls[2:] == ["a request", "a result Update"]
    assert again.refusals == ()
    assert again.all_refusals == found.refusals


@in_both_modes
@on_the_first_engine
def test_a_norm_outlier_is_refused_and_its_weights_are_kept(engine: Any, driven: Any, mode: str) -> None:
    """Every value is finite and the digest is right: only the norms of the others reveal it."""
    from zk0.federation.protocol.quarantine import quarantine_norm_outliers

    grid = TamperingGrid(engine.grid)
    federation = engine.federation(grid=grid, mode=mode)
    driven.begin(federation)
    grid.change = lambda values: rewrite(values, lambda w: w["model.state_proj.bias"].__imul__(np.float32(1e6)))
    found = driven.train(federation)
    grid.change = None
    assert [u.client for u in found.updates] == ["a", "b", "c"]
    left = quarantine_norm_outliers(found, driven.spool(), Path(driven.history[-1].path), 100.0)
    assert [u.client for u in left.updates] == ["b", "c"]
    assert [r.client for r in left.refusals] == ["a"]
    assert re.search(r"times the median .* expected at most 100 times", left.refusals[0].reason)
    assert (driven.spool() / "a.refused").is_file()

    again = driven.train(federation)
    whole = quarantine_norm_outliers(again, driven.spool(), Path(driven.history[-1].path), 100.0)
    assert [u.client for u in whole.updates] == ["a", "b", "c"]
    assert again.all_refusals == left.refusals


def test_a_client_that_cannot_evaluate_is_refused_and_the_others_count(
    session_of: Callable[..., Session], nodes_of: Callable, drive: type, tmp_path: Path
) -> None:
    """One answers as another client, one with an invalid score; then all have other weights than the plan's."""

    class WrongScores(LocalGrid):
        def pull_messages(self, ids: Any) -> list[Any]:
            from flwr.app import ConfigRecord, RecordDict

            replies = super().pull_messages(ids)
            for reply in replies:
                score = str(reply.content["answer"].get("score", ""))
                if '"client":"b"' in score:
                    changed = {"score": score.replace('"client":"b"', '"client":"a"')}
                elif '"client":"c"' in score:
                    changed = {"score": re.sub(r'"policy_loss":[0-9.]+', '"policy_loss":NaN', score)}
                else:
                    continue
                reply.content = RecordDict({"answer": ConfigRecord(changed)})
            return replies

    session = session_of()
    with WrongScores(nodes_of(session, tmp_path), 0, tmp_path / "server") as grid:
        federation, driven = Federation(grid, ("a", "b", "c"), 60), drive(session, tmp_path)
        driven.begin(federation)
        listener = RecordingListener()
        found = driven.evaluate(federation, listener)
        assert [s.client for s in found.scores] == ["a"]
        assert (len(found.scores[0].score.joint_error_degrees), found.scores[0].score.horizon_error_degrees) == (6, ())
        assert listener.calls == [f"{name} request" for name in "abc"] + [
            "a result ClientScore",
            "b result Refusal",
            "c result Refusal",
        ]
        assert json.loads((tmp_path / "clients/a/evaluation_0.json").read_text()) == found.scores[0].model_dump(
            mode="json"
        )
        (second, third) = found.refusals
        assert (second.client, second.reason) == ("b", "its answer names client a")
        assert third.client == "c"
        assert "its answer is not a score" in third.reason
        other = driven.evaluate(federation, global_digest="0" * 64)
        assert other.scores == ()
        assert all("expected 000000000000" in r.reason for r in other.refusals)


def test_a_client_whose_disk_was_away_is_asked_once_more(
    session_of: Callable[..., Session],
    nodes_of: Callable,
    drive: type,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The disk of b comes back, that of c does not; a is asked once."""
    written = ".evaluation_0.json"
    away, open_file = [("b", written), ("c", written), ("c", written)], os.open

    def stale(path: Any, *arguments: Any, **options: Any) -> int:
        for client, name in away:
            if Path(path).parent.name == client and Path(path).name.startswith(name):
                away.remove((client, name))
                raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return open_file(path, *arguments, **options)

    session, listener = session_of(), RecordingListener()
    with LocalGrid(nodes_of(session, tmp_path), 0, tmp_path / "server") as grid:
        federation, driven = Federation(grid, ("a", "b", "c"), 60), drive(session, tmp_path)
        driven.begin(federation)
        monkeypatch.setattr(os, "open", stale)
        with pytest.raises(TransientError) as caught:
            driven.evaluate(federation)
        assert re.search(
            r"2 clients cannot evaluate round 0 now:\n  b: .*Stale file handle.*\n  c: ", str(caught.value)
        )
        found = driven.evaluate(federation, listener)
        assert [s.client for s in found.scores] == ["a", "b"]
        assert [r.client for r in found.refusals] == ["c"]
        assert listener.calls == [
            "a reused", "b request", "c request", "b result ClientScore", "c result Refusal",
        ]  # fmt: skip
        again = driven.evaluate(federation)
        assert [s.client for s in again.scores] == ["a", "b", "c"]
        assert again.scores[:2] == found.scores

        assert "| b, round 0 | zk0.federation" in (tmp_path / "clients/b/client.log").read_text()

        away.append(("b", SENT_JOURNAL))
        terms, none = driven.plans()[0].terms, {"a": (), "b": ()}
        with pytest.raises(TransientError, match=r"1 clients cannot take part in receipts now: b: .*Stale file"):
            federation.send_receipts(terms, none)
        assert federation.send_receipts(terms, none) == ()


class LyingGrid(GridWrapper):
    """Changes the statistics in the joining answer of client a."""

    lie: dict[str, Any]

    def pull_messages(self, ids: Any) -> list[Any]:
        from flwr.app import ConfigRecord, RecordDict

        replies = self._grid.pull_messages(ids)
        for reply in replies:
            values = json.loads(str(reply.content["answer"].get("member", "{}")))
            if values.get("client") == "a":
                values["statistics"]["state"].update(self.lie)
                reply.content = RecordDict({"answer": ConfigRecord({"member": json.dumps(values)})})
        return replies


@pytest.mark.parametrize("lie", [{"std": [1e200] * 6}, {"count": 10**400}, {"mean": [0.0] * 7}])
def test_a_session_goes_on_without_a_member_that_lies(engine: Any, driven: Any, lie: dict[str, Any]) -> None:
    from zk0.settings.plans import session_terms

    grid = LyingGrid(engine.grid)
    grid.lie = lie
    federation = engine.federation(grid=grid)
    members = federation.join(session_terms(driven.session, driven.name))
    assert [member.client for member in members] == ["b", "c"]


class RepeatingGrid(GridWrapper):
    """Returns replies twice, and again in a later round."""

    def __init__(self, grid: Any) -> None:
        super().__init__(grid)
        self.older: list[Any] = []
        self.twice = False

    def pull_messages(self, ids: Any) -> list[Any]:
        replies = self._grid.pull_messages(ids)
        if not replies or not self.twice:
            return replies
        older, self.older = self.older, [*self.older, *replies]
        return [*older, *replies, *replies]


@in_both_modes
def test_answers_that_come_twice_or_late_change_nothing(engine: Any, driven: Any, mode: str) -> None:
    grid = RepeatingGrid(engine.grid)
    federation = engine.federation(grid=grid, mode=mode)
    driven.begin(federation)
    grid.twice = True
    listener = RecordingListener()
    first = driven.train(federation, listener)
    assert [u.client for u in first.updates] == ["a", "b", "c"]
    assert sorted(listener.calls) == sorted(f"{name} {what}" for name in "abc" for what in ("request", "result Update"))
    assert {(r.client, r.reason) for r in first.refusals} == {
        (name, "answered twice; the first answer counts") for name in "abc"
    }
    before = {(u.client, u.digest) for u in first.updates}
    driven.average(first.updates)
    later = driven.train(federation)
    assert [u.client for u in later.updates] == ["a", "b", "c"]
    assert {r.reason for r in later.refusals} == {
        "answered a request of another round",
        "answered twice; the first answer counts",
    }
    assert not before & {(u.client, u.digest) for u in later.updates}


class TestSpool:
    @in_both_modes
    def test_a_spooled_update_is_reused_without_a_request(self, engine: Any, driven: Any, mode: str) -> None:
        federation = engine.federation(mode=mode)
        driven.begin(federation)
        first = driven.train(federation)
        shutil.rmtree(engine.folder / "clients/a/sessions")
        assert driven.train(federation).updates == first.updates
        assert not (engine.folder / "clients/a/sessions").exists()

    @in_both_modes
    @on_engines(["weights cut short", "weights gone", "record cut short"])
    def test_a_damaged_update_is_requested_again(self, fault: str, engine: Any, driven: Any, mode: str) -> None:
        federation = engine.federation(mode=mode)
        driven.begin(federation)
        first = driven.train(federation)
        weights, record = driven.spool() / "a.safetensors", driven.spool() / "a.json"
        if fault == "weights cut short":
            shutil.copyfile(weights, driven.spool() / "copy")
            os.truncate(driven.spool() / "copy", 9000)
            (driven.spool() / "copy").replace(weights)
        elif fault == "weights gone":
            weights.unlink()
        else:
            record.write_text(record.read_text()[:40])
        assert driven.train(federation).updates == first.updates

    @in_both_modes
    @on_the_first_engine
    def test_an_update_is_not_reused_for_another_plan(self, engine: Any, driven: Any, mode: str) -> None:
        federation = engine.federation(mode=mode)
        driven.begin(federation)
        first, other = driven.train(federation), driven.train(federation, lr=5e-4)
        assert [u.metrics.lr_first for u in first.updates] == [1e-3] * 3
        assert [u.metrics.lr_first for u in other.updates] == [5e-4] * 3
        assert {u.digest for u in first.updates}.isdisjoint({u.digest for u in other.updates})

    def test_an_update_is_not_reused_for_another_session(
        self, engine: Any, session: Session, drive: type, tmp_path: Path
    ) -> None:
        files = set()
        for name in (f"{tmp_path.name}-one", f"{tmp_path.name}-other"):
            driven = drive(session, tmp_path / name, name)
            engine.show_ledger(driven)
            federation = engine.federation()
            driven.begin(federation)
            driven.train(federation)
            files |= set(engine.folder.glob("clients/a/sessions/*/updates/*.safetensors"))
        assert len(files) >= 2

    @in_both_modes
    def test_a_client_answers_from_its_disk_and_deletes_old_rounds(self, engine: Any, driven: Any, mode: str) -> None:
        federation = engine.federation(mode=mode)
        driven.begin(federation)
        first = driven.train(federation)
        updates = session_state_folder(engine.folder / "clients/a", driven.name) / "updates"
        trained = {f: f.stat().st_mtime_ns for f in updates.iterdir()}
        shutil.rmtree(driven.spool())
        again = driven.train(federation)
        assert again.updates == first.updates
        assert {f: f.stat().st_mtime_ns for f in updates.iterdir()} == trained
        driven.average(again.updates)
        driven.train(federation)
        assert {f.name[:9] for f in updates.iterdir()} == {"round-002"}

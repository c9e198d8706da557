"""Answers that are wrong, come twice or late: refused with the reason, and nothing finished is lost."""

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from zk0.federation.collect import Federation
from zk0.federation.local import LocalGrid
from zk0.session import Session


class Between:
    """Stands between an engine and the one who asks."""

    def __init__(self, grid: Any) -> None:
        self._grid = grid

    def __getattr__(self, name: str) -> Any:
        return getattr(self._grid, name)


class Tampering(Between):
    """Changes the answer of client a on its way back."""

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
                    said = {"update": json.dumps(values), "weights-path": values["path"]}
                    reply.content = RecordDict({"answer": ConfigRecord(said)})
        return replies


def rewrite(values: dict, change: Callable[[dict[str, np.ndarray]], None]) -> None:
    """Other weights in a file of their own, with the digest that belongs to them."""
    from zk0.weights import load_weights, save_weights

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
    "cut short": (cut, r"not a whole safetensors file", True),
    "one bit": (bit, r"digest [0-9a-f]{12}, expected", True),
    "other round": (lambda v: v.update(round=7), "is of round 7, expected round 1", True),
    "other start": (lambda v: v.update(global_digest="0" * 64), "was trained from weights 000000000000", True),
    "other client": (lambda v: v.update(client="b"), "answers as b", True),
    "no file": (lambda v: v.update(path=v["path"] + ".gone"), "weights it names are not there", False),
    "no update": (lambda v: v.pop("digest"), "an answer that is no update", False),
    "not finite": (lambda v: v["metrics"].update(policy_loss=float("nan")), "an answer that is no update", False),
}


SLOW = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module", params=["local", *(pytest.param(e, marks=SLOW) for e in ("ray", "deployment"))])
def engine(request: pytest.FixtureRequest) -> Any:
    """Every engine, a real SuperLink too; the answers are looked at by one `collect`, whatever carries them."""
    return request.getfixturevalue(f"{request.param}_engine")


@pytest.fixture(scope="module")
def session(engine: Any) -> Session:
    """One step a round."""
    training = engine.session.training.model_copy(update={"local_steps": 1})
    return engine.session.model_copy(update={"training": training})


class Told:
    """Writes down what it is told."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def asked(self, client: str) -> None:
        self.heard.append(f"{client} asked")

    def kept(self, update: Any) -> None:
        self.heard.append(f"{update.client} kept")

    def answered(self, found: Any) -> None:
        self.heard.append(f"{found.client} answered {type(found).__name__}")


@pytest.fixture
def driven(session: Session, drive: type, tmp_path: Path) -> Any:
    """A session of the test's own, for its clients have one name each."""
    return drive(session, tmp_path, tmp_path.name)


@pytest.mark.parametrize("fault", BAD)
def test_a_bad_answer_is_refused_and_kept_aside(fault: str, engine: Any, driven: Any) -> None:
    change, said, aside = BAD[fault]
    grid = Tampering(engine.grid)
    federation = engine.federation(grid=grid)
    driven.begin(federation)
    grid.change = change
    told = Told()
    found = driven.train(federation, told)
    grid.change = None
    assert [u.client for u in found.updates] == ["b", "c"]
    assert [r.client for r in found.refusals] == ["a"]
    assert told.heard[:3] == ["a asked", "b asked", "c asked"]
    assert sorted(told.heard[3:]) == ["a answered Refusal", "b answered Update", "c answered Update"]
    assert re.search(said, found.refusals[0].reason), found.refusals[0].reason
    names = {p.name for p in driven.spool().iterdir()}
    good = {f"{name}.{kind}" for name in "bc" for kind in ("safetensors", "json")}
    assert names == good | {"refusals.jsonl"} | ({"a.refused"} if aside else set())

    told = Told()
    again = driven.train(federation, told)
    assert [u.client for u in again.updates] == ["a", "b", "c"]
    assert told.heard == ["b kept", "c kept", "a asked", "a answered Update"]
    assert again.refusals == ()
    assert again.all_refusals == found.refusals


def test_a_step_of_huge_length_is_refused_and_kept_aside(engine: Any, driven: Any) -> None:
    """Every value is finite and the digest is right: only beside the others it is found out."""
    from zk0.federation.quarantine import without_outliers

    grid = Tampering(engine.grid)
    federation = engine.federation(grid=grid)
    driven.begin(federation)
    grid.change = lambda values: rewrite(values, lambda w: w["model.state_proj.bias"].__imul__(np.float32(1e6)))
    found = driven.train(federation)
    grid.change = None
    assert [u.client for u in found.updates] == ["a", "b", "c"]
    left = without_outliers(found, driven.spool(), Path(driven.history[-1].path), 100.0)
    assert [u.client for u in left.updates] == ["b", "c"]
    assert [r.client for r in left.refusals] == ["a"]
    assert re.search(r"times the median .* expected at most 100 times", left.refusals[0].reason)
    assert (driven.spool() / "a.refused").is_file()

    again = driven.train(federation)
    whole = without_outliers(again, driven.spool(), Path(driven.history[-1].path), 100.0)
    assert [u.client for u in whole.updates] == ["a", "b", "c"]
    assert again.all_refusals == left.refusals


def test_a_client_that_cannot_judge_is_told_and_the_others_count(
    session_of: Callable[..., Session], nodes_of: Callable, drive: type, tmp_path: Path
) -> None:
    """One answers as another, one says something that is no score, one has other weights than the plan's."""

    class Lying(LocalGrid):
        def pull_messages(self, ids: Any) -> list[Any]:
            from flwr.app import ConfigRecord, RecordDict

            replies = super().pull_messages(ids)
            for reply in replies:
                said = str(reply.content["answer"].get("score", ""))
                if '"client":"b"' in said:
                    changed = {"score": said.replace('"client":"b"', '"client":"a"')}
                elif '"client":"c"' in said:
                    changed = {"score": re.sub(r'"policy_loss":[0-9.]+', '"policy_loss":NaN', said)}
                else:
                    continue
                reply.content = RecordDict({"answer": ConfigRecord(changed)})
            return replies

    session = session_of()
    with Lying(nodes_of(session, tmp_path), 0, tmp_path / "server") as grid:
        federation, driven = Federation(grid, ("a", "b", "c"), 60), drive(session, tmp_path)
        driven.begin(federation)
        told = Told()
        found = driven.evaluate(federation, told)
        assert [s.client for s in found.scores] == ["a"]
        assert told.heard == [f"{name} asked" for name in "abc"] + [
            "a answered ClientScore",
            "b answered Refusal",
            "c answered Refusal",
        ]
        assert json.loads((tmp_path / "clients/a/evaluation_0.json").read_text()) == found.scores[0].model_dump(
            mode="json"
        )
        (second, third) = found.refusals
        assert (second.client, second.reason) == ("b", "answers as a")
        assert third.client == "c"
        assert "an answer that is no score" in third.reason
        other = driven.evaluate(federation, global_digest="0" * 64)
        assert other.scores == ()
        assert all("expected 000000000000" in r.reason for r in other.refusals)


class Repeating(Between):
    """Hands replies out twice, and again in a later round."""

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


def test_answers_that_come_twice_or_late_change_nothing(engine: Any, driven: Any) -> None:
    grid = Repeating(engine.grid)
    federation = engine.federation(grid=grid)
    driven.begin(federation)
    grid.twice = True
    told = Told()
    first = driven.train(federation, told)
    assert [u.client for u in first.updates] == ["a", "b", "c"]
    assert sorted(told.heard) == sorted(f"{name} {what}" for name in "abc" for what in ("asked", "answered Update"))
    assert {(r.client, r.reason) for r in first.refusals} == {
        (name, "answered twice; the first answer counts") for name in "abc"
    }
    kept = {(u.client, u.digest) for u in first.updates}
    driven.average(first.updates)
    later = driven.train(federation)
    assert [u.client for u in later.updates] == ["a", "b", "c"]
    assert {r.reason for r in later.refusals} == {
        "answered a question of another round",
        "answered twice; the first answer counts",
    }
    assert not kept & {(u.client, u.digest) for u in later.updates}


class TestSpool:
    def test_an_answer_that_lies_there_is_taken_without_asking(self, engine: Any, driven: Any) -> None:
        federation = engine.federation()
        driven.begin(federation)
        first = driven.train(federation)
        shutil.rmtree(engine.folder / "clients/a/updates")
        assert driven.train(federation).updates == first.updates
        assert not (engine.folder / "clients/a/updates").exists()

    @pytest.mark.parametrize("fault", ["weights cut short", "weights gone", "record cut short"])
    def test_one_that_was_damaged_meanwhile_is_asked_for_again(self, fault: str, engine: Any, driven: Any) -> None:
        federation = engine.federation()
        driven.begin(federation)
        first = driven.train(federation)
        weights, note = driven.spool() / "a.safetensors", driven.spool() / "a.json"
        if fault == "weights cut short":
            shutil.copyfile(weights, driven.spool() / "copy")
            os.truncate(driven.spool() / "copy", 9000)
            (driven.spool() / "copy").replace(weights)
        elif fault == "weights gone":
            weights.unlink()
        else:
            note.write_text(note.read_text()[:40])
        assert driven.train(federation).updates == first.updates

    def test_another_plan_is_not_answered_with_the_old_one(self, engine: Any, driven: Any) -> None:
        federation = engine.federation()
        driven.begin(federation)
        first, other = driven.train(federation), driven.train(federation, lr=5e-4)
        assert [u.metrics.lr_first for u in first.updates] == [1e-3] * 3
        assert [u.metrics.lr_first for u in other.updates] == [5e-4] * 3
        assert {u.digest for u in first.updates}.isdisjoint({u.digest for u in other.updates})

    def test_another_session_is_not_answered_with_the_old_one(
        self, engine: Any, session: Session, drive: type, tmp_path: Path
    ) -> None:
        files = set()
        for name in (f"{tmp_path.name}-one", f"{tmp_path.name}-other"):
            driven, federation = drive(session, tmp_path / name, name), engine.federation()
            driven.begin(federation)
            driven.train(federation)
            files |= set((engine.folder / "clients/a/updates").glob("*.safetensors"))
        assert len(files) >= 2

    def test_a_client_answers_from_its_disk_and_forgets_old_rounds(self, engine: Any, driven: Any) -> None:
        federation = engine.federation()
        driven.begin(federation)
        first = driven.train(federation)
        trained = {f: f.stat().st_mtime_ns for f in (engine.folder / "clients/a/updates").iterdir()}
        shutil.rmtree(driven.spool())
        again = driven.train(federation)
        assert again.updates == first.updates
        assert {f: f.stat().st_mtime_ns for f in (engine.folder / "clients/a/updates").iterdir()} == trained
        driven.average(again.updates)
        driven.train(federation)
        assert {f.name[:9] for f in (engine.folder / "clients/a/updates").iterdir()} == {"round-002"}

"""What a fault costs: one reply. Killed, hung and raising clients, and answers that are wrong."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from zk0.errors import FederationError
from zk0.federation.collect import Federation
from zk0.federation.local import LocalGrid
from zk0.session import Session, parse_session, terms_of

DRIVER = """
import sys, time
from pathlib import Path
from zk0.federation.local import LocalGrid
with LocalGrid([], 2, Path(sys.argv[1])) as grid:
    while not all(w._process for w in grid._workers):
        time.sleep(0.05)
    print(*(w._process.pid for w in grid._workers), flush=True)
    time.sleep(600)
"""


def nodes_of(session: Session, folder: Path) -> list[dict[str, Any]]:
    cache = session.cache_dir
    return [
        {"client": c.model_dump_json(), "scratch": str(folder / "clients" / c.name), "cache": cache}
        for c in session.members()
    ]


def until(holds: Callable[[], bool], seconds: float = 30) -> bool:
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def test_a_killed_and_a_hung_worker_cost_one_reply(
    session_of: Callable[..., Session], drive: type, tmp_path: Path, my_workers: Callable[[], list[int]]
) -> None:
    session = session_of(("a", "b"))
    ends: list[tuple[str, int, int]] = [("a", 1, signal.SIGKILL), ("a", 2, signal.SIGSTOP)]

    def on_step(client: str, round_number: int, step: int, steps: int, work: str) -> None:
        if step == 2 and ends and (client, round_number) == ends[0][:2]:
            os.kill(my_workers()[0], ends.pop(0)[2])

    with LocalGrid(nodes_of(session, tmp_path), 1, tmp_path / "server", on_step) as grid:
        federation, driven = Federation(grid, ("a", "b"), 240), drive(session, tmp_path)
        driven.begin(federation)
        (first,) = my_workers()

        found = driven.train(federation)
        assert [u.client for u in found.updates] == ["b"]
        assert [(r.client, r.reason) for r in found.refusals] == [("a", "the worker ended with -9; see worker-0.log")]
        (second,) = my_workers()
        assert second != first

        kept = (driven.spool() / "b.safetensors").stat()
        trained = (tmp_path / "clients/b/round_1.json").stat()
        told: list[str] = []
        again = driven.train(federation, told.append)
        assert [u.client for u in again.updates] == ["a", "b"]
        assert again.refusals == ()
        assert sorted(told) == ["a", "b"]
        assert (driven.spool() / "b.safetensors").stat().st_mtime_ns == kept.st_mtime_ns
        assert (tmp_path / "clients/b/round_1.json").stat().st_mtime_ns == trained.st_mtime_ns
        assert my_workers() == [second]
        driven.average(again.updates)

        hasty = Federation(grid, ("a", "b"), 5)
        hasty.join(terms_of(session, "mini"))
        began = time.monotonic()
        hung = driven.train(hasty)
        assert time.monotonic() - began < 60
        reasons = [(r.client, r.reason) for r in hung.refusals]
        assert reasons == [("a", "no answer within 5 s"), ("b", "no answer within 5 s")]
        assert hung.updates == ()
        assert not ends
        assert until(lambda: second not in my_workers())
        assert not (tmp_path / "clients/b/round_2.json").exists()
        time.sleep(0.2)
        assert not (tmp_path / "clients/b/round_2.json").exists()
    assert my_workers() == []


def test_a_fault_of_the_client_itself_is_a_refusal_with_its_text(
    session_of: Callable[..., Session], tmp_path: Path
) -> None:
    session = session_of(("a", "b"))
    (tmp_path / "clients").mkdir()
    (tmp_path / "clients/a").touch()
    (tmp_path / "clients/b").touch()
    with (
        LocalGrid(nodes_of(session, tmp_path), 0, tmp_path / "server") as grid,
        pytest.raises(FederationError, match=r"2 of 2 clients cannot take part.*FileExistsError: .*clients/a") as found,
    ):
        Federation(grid, ("a", "b"), 60).join(terms_of(session, "mini"))
    assert "clients/b" in str(found.value)


def test_workers_die_with_the_process_that_started_them(tmp_path: Path, workers: Callable[[], dict[int, int]]) -> None:
    driver = subprocess.Popen([sys.executable, "-c", DRIVER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert driver.stdout is not None
    started = {int(pid) for pid in driver.stdout.readline().split()}
    assert len(started) == 2
    assert started <= workers().keys()
    driver.kill()
    driver.wait()
    assert until(lambda: not started & workers().keys())


def test_a_grid_that_is_closed_at_once_leaves_nothing(tmp_path: Path, my_workers: Callable[[], list[int]]) -> None:
    for number in range(5):
        with LocalGrid([], 2, tmp_path / str(number)):
            pass
        assert my_workers() == []


class TestJoining:
    """Clients that may not take part: each is named, with what to do."""

    def join(self, session: Session, folder: Path) -> Any:
        with LocalGrid(nodes_of(session, folder), 0, folder / "server") as grid:
            return Federation(grid, [c.name for c in session.members()], 60).join(terms_of(session, "mini"))

    def test_members_come_in_the_order_of_the_session(self, session_of: Callable[..., Session], tmp_path: Path) -> None:
        members = self.join(session_of(("c", "a")), tmp_path)
        assert [m.client for m in members] == ["c", "a"]
        assert [m.train_frames for m in members] == [24, 27]
        assert all(m.report.root == "" for m in members)

    def test_broken_data_and_other_cameras_are_named(
        self,
        session_of: Callable[..., Session],
        recordings: dict[str, Path],
        record: Callable[..., Path],
        tmp_path: Path,
    ) -> None:
        record(tmp_path / "one-camera", 11, (6, 6), ("wrist",))
        values = session_of(("a", "b", "c")).model_dump()
        values["clients"][1]["dataset"] = f"local:{tmp_path}/nothing"
        values["clients"][2]["dataset"] = f"local:{tmp_path}/one-camera"
        with pytest.raises(FederationError, match=r"2 of 3 clients cannot take part") as found:
            self.join(parse_session(values, "test"), tmp_path)
        assert "no LeRobot data set at" in str(found.value)
        assert "overhead" in str(found.value)
        assert "\n" not in str(found.value)

    def test_a_client_that_never_joined_cannot_train(
        self, session_of: Callable[..., Session], drive: type, tmp_path: Path
    ) -> None:
        session = session_of(("a", "b"))
        with LocalGrid(nodes_of(session, tmp_path), 0, tmp_path / "server") as grid:
            driven = drive(session, tmp_path)
            driven.begin(Federation(grid, ("a", "b"), 60))
            with pytest.raises(FederationError, match="a: has not joined"):
                driven.train(Federation(grid, ("a", "b"), 60))

    def test_too_few_nodes(self, session_of: Callable[..., Session], tmp_path: Path) -> None:
        session = session_of(("a", "b"))
        with (
            LocalGrid(nodes_of(session, tmp_path)[:1], 0, tmp_path / "server") as grid,
            pytest.raises(FederationError, match=r"1 nodes after 0.1 s, expected 2"),
        ):
            Federation(grid, ("a", "b"), 0.1).join(terms_of(session, "mini"))


class Tampering(LocalGrid):
    """A local engine on whose way back an answer is changed."""

    change: Callable[[dict], None] | None = None

    def pull_messages(self, ids: Any) -> list[Any]:
        from flwr.app import ConfigRecord, RecordDict

        replies = super().pull_messages(ids)
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


@pytest.fixture(scope="module")
def tampered(session_of: Callable[..., Session], tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple]:
    folder = tmp_path_factory.mktemp("tampered")
    session = session_of(("a", "b"), training={"local_steps": 1})
    with Tampering(nodes_of(session, folder), 0, folder / "server") as grid:
        federation = Federation(grid, ("a", "b"), 60)
        federation.join(terms_of(session, "mini"))
        yield grid, federation, session, folder


@pytest.mark.parametrize("fault", BAD)
def test_a_bad_answer_is_refused_and_kept_aside(fault: str, tampered: tuple, drive: type, tmp_path: Path) -> None:
    grid, federation, session, _ = tampered
    change, said, aside = BAD[fault]
    driven = drive(session, tmp_path)
    driven.begin(federation)
    grid.change = change
    found = driven.train(federation)
    grid.change = None
    assert [u.client for u in found.updates] == ["b"]
    assert [r.client for r in found.refusals] == ["a"]
    assert re.search(said, found.refusals[0].reason), found.refusals[0].reason
    names = {p.name for p in driven.spool().iterdir()}
    assert names == {"b.safetensors", "b.json", "refusals.jsonl"} | ({"a.refused"} if aside else set())

    good = driven.train(federation)
    assert [u.client for u in good.updates] == ["a", "b"]
    assert good.refusals == ()
    assert good.all_refusals == found.refusals


def test_a_client_that_cannot_judge_is_told_and_the_others_count(
    session_of: Callable[..., Session], drive: type, tmp_path: Path
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
        found = driven.evaluate(federation)
        assert [s.client for s in found.scores] == ["a"]
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


class Repeating(LocalGrid):
    """A local engine that hands some replies out again, with others or in a later round."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.again: list[Any] = []
        self.twice = False

    def pull_messages(self, ids: Any) -> list[Any]:
        replies = super().pull_messages(ids)
        if not replies or not self.twice:
            return replies
        older, self.again = self.again, replies
        return [*older, *replies, *replies]


def test_answers_that_come_twice_or_late_change_nothing(
    session_of: Callable[..., Session], drive: type, tmp_path: Path
) -> None:
    session = session_of(("a", "b"), training={"local_steps": 1})
    driven = drive(session, tmp_path)
    with Repeating(nodes_of(session, tmp_path), 0, tmp_path / "server") as grid:
        federation = Federation(grid, ("a", "b"), 60)
        driven.begin(federation)
        grid.twice = True
        told: list[str] = []
        first = driven.train(federation, told.append)
        assert [u.client for u in first.updates] == sorted(told) == ["a", "b"]
        assert [(r.client, r.reason) for r in first.refusals] == [
            (name, "answered twice; the first answer counts") for name in "ab"
        ]
        kept = {u.client: u.digest for u in first.updates}
        driven.average(first.updates)
        later = driven.train(federation)
        assert [u.client for u in later.updates] == ["a", "b"]
        assert {r.reason for r in later.refusals} == {
            "answered a question of another round",
            "answered twice; the first answer counts",
        }
        assert not kept.items() & {(u.client, u.digest) for u in later.updates}


class TestSpool:
    def test_an_answer_that_lies_there_is_taken_without_asking(
        self, tampered: tuple, drive: type, tmp_path: Path
    ) -> None:
        _, federation, session, folder = tampered
        driven = drive(session, tmp_path)
        driven.begin(federation)
        first = driven.train(federation)
        shutil.rmtree(folder / "clients/a/updates")
        assert driven.train(federation).updates == first.updates
        assert not (folder / "clients/a/updates").exists()

    @pytest.mark.parametrize("fault", ["weights cut short", "weights gone", "record cut short"])
    def test_one_that_was_damaged_meanwhile_is_asked_for_again(
        self, fault: str, tampered: tuple, drive: type, tmp_path: Path
    ) -> None:
        _, federation, session, _ = tampered
        driven = drive(session, tmp_path)
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

    def test_another_plan_is_not_answered_with_the_old_one(self, tampered: tuple, drive: type, tmp_path: Path) -> None:
        _, federation, session, _ = tampered
        driven = drive(session, tmp_path)
        driven.begin(federation)
        first, other = driven.train(federation), driven.train(federation, lr=5e-4)
        assert [u.metrics.lr_first for u in first.updates] == [1e-3, 1e-3]
        assert [u.metrics.lr_first for u in other.updates] == [5e-4, 5e-4]
        assert {u.digest for u in first.updates}.isdisjoint({u.digest for u in other.updates})

    def test_another_session_is_not_answered_with_the_old_one(
        self, tampered: tuple, drive: type, tmp_path: Path
    ) -> None:
        grid, _, session, folder = tampered
        files = set()
        for name in ("mini", "other"):
            driven = drive(session, tmp_path / name, name)
            federation = Federation(grid, ("a", "b"), 60)
            driven.begin(federation)
            driven.train(federation)
            files |= set((folder / "clients/a/updates").glob("*.safetensors"))
        assert len(files) >= 2

    def test_a_client_answers_from_its_disk_and_forgets_old_rounds(
        self, tampered: tuple, drive: type, tmp_path: Path
    ) -> None:
        _, federation, session, folder = tampered
        driven = drive(session, tmp_path)
        driven.begin(federation)
        first = driven.train(federation)
        trained = {f: f.stat().st_mtime_ns for f in (folder / "clients/a/updates").iterdir()}
        shutil.rmtree(driven.spool())
        again = driven.train(federation)
        assert again.updates == first.updates
        assert {f: f.stat().st_mtime_ns for f in (folder / "clients/a/updates").iterdir()} == trained
        driven.average(again.updates)
        driven.train(federation)
        assert {f.name[:9] for f in (folder / "clients/a/updates").iterdir()} == {"round-002"}


def test_a_federation_is_open_once_and_found_by_name(session_of: Callable[..., Session], tmp_path: Path) -> None:
    from zk0.federation.open import federation, open_federation

    session = session_of()
    with open_federation(session, "one", tmp_path) as found:
        assert federation("one") is found
        with pytest.raises(FederationError, match="one: this federation is open already"):
            open_federation(session, "one", tmp_path).__enter__()
    with pytest.raises(FederationError, match="no federation of that name"):
        federation("one")

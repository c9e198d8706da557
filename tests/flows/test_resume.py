"""A session that is killed at any point and taken up again ends with the digest of an undisturbed one."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import TaskRunFilter, TaskRunFilterName
from prefect.client.schemas.sorting import TaskRunSort

from zk0.ledger import Ledger
from zk0.records import RoundRecord
from zk0.weights import check_weights

pytestmark = pytest.mark.timeout(900)  # the first test waits for a server and for half a minute of imports

ROUNDS = 2
ZK0 = str(Path(sys.executable).with_name("zk0"))
SCAFFOLD = ("aggregation.strategy=scaffold",)
INT8 = ("aggregation.strategy=fedavg", "federation.wire=int8", "federation.wire_down=bf16", "federation.compress=true")
LATE = ", ".join(f'{{name="{n}", dataset="local:DATA/{n}", from_round={1 + (n == "c")}}}' for n in "abc")
SETTINGS = {"fedavgm": (), "scaffold": SCAFFOLD, "int8": INT8, "late": (f"clients=[{LATE}]",)}


@dataclass(frozen=True)
class Moment:
    """When the process of the second round dies, and what is there then."""

    at: tuple[str, str, int]
    left: str = ""
    """A file that is there then (a pattern)."""
    cut: int | None = None
    """The file may grow by so many bytes: it dies in the middle of a write."""
    steps: tuple[int, int] = (1, 1)
    """How often a and b come to the last step of the round in the end."""
    settings: str = "fedavgm"
    to_the_end: bool = False
    """Whether it is taken up to the very end, not only until the round is recorded."""


WEIGHTS, CHECKPOINT = r"round-00[12]/\.weights.*tmp", r"models/\.checkpoint_round_2-\w+"
MOMENTS = {
    "training": Moment(("told", "step a 2 3", 1)),
    "between clients": Moment(("told", "step b 2 1", 1), "clients/a/updates/round-002-*.json"),
    "update cut": Moment(
        ("open", r"a/updates/\.round-002", 1), "clients/a/updates/.round-002-*.tmp", 200_000, steps=(2, 1)
    ),
    "update without record": Moment(
        ("open", r"a/updates/round-002.*json", 1), "clients/a/updates/round-002-*.safetensors", steps=(2, 1)
    ),
    "answer not spooled": Moment(("os.link", r"updates/\.a\.", 1), "clients/b/round_2.json"),
    "between replies": Moment(("os.link", r"updates/\.b\.", 1), "round-002/updates/a.json"),
    "record of an answer cut": Moment(("open", r"002/updates/b\.json", 1), "round-002/updates/b.json.tmp", 50),
    "aggregate begun": Moment(("open", WEIGHTS, 1), "round-002/updates/b.json"),
    "aggregate cut": Moment(("open", WEIGHTS, 1), "round-002/.weights.*.tmp", 300_000),
    "state without weights": Moment(("os.rename", WEIGHTS, 1), "round-002/server_momentum.safetensors"),
    "before it is judged": Moment(("told", "judging round 2", 1), "round-002/weights.safetensors"),
    "after it is judged": Moment(("told", "^judged .* 2", 1), "round-002/weights.safetensors"),
    "clients judge": Moment(("open", r"a/evaluation_2\.json", 1), "round-002/weights.safetensors"),
    "clients' score cut": Moment(("open", r"b/evaluation_2\.json", 1), "clients/b/evaluation_2.json.tmp", 100),
    "checkpoint half made": Moment(
        ("open", CHECKPOINT + "/policy_preprocessor", 1), "models/.checkpoint_round_2-*/model.safetensors"
    ),
    "checkpoint without its name": Moment(("os.rename", CHECKPOINT, 1), "models/.checkpoint_round_2-*/metrics.json"),
    "before it is recorded": Moment(("open", r"/ledger\.jsonl", 1), "models/checkpoint_round_2/README.md"),
    "record cut": Moment(("open", r"/ledger\.jsonl", 1), "models/checkpoint_round_2/README.md", 100),
    "recorded, not cleared": Moment(("os.remove", r"002/updates/a\.safetensors", 1), to_the_end=True),
    "evaluation record": Moment(("open", r"server/\.round_2_server_eval", 1), to_the_end=True),
    "chart cut": Moment(("open", r"\.policy_loss_chart", 1), ".policy_loss_chart.half.png", 5000, to_the_end=True),
    "receipts": Moment(("open", r"b/receipts/.*/round_2", 1), "clients/a/receipts/*/round_2.json", to_the_end=True),
    "report cut": Moment(("open", r"/\.report\.half", 1), ".report.half.html", 1000, to_the_end=True),
}
BY_DEFAULT = (
    "training",
    "between replies",
    "aggregate cut",
    "before it is judged",
    "clients judge",
    "record cut",
    "evaluation record",
    "report cut",
)
for _name in ("state without weights", "update cut"):
    MOMENTS[f"{_name}, scaffold"] = replace(MOMENTS[_name], settings="scaffold", left="")
for _name in ("update without record",):
    MOMENTS[f"{_name}, int8"] = replace(MOMENTS[_name], settings="int8", left="")
MOMENTS["before it is judged, late"] = replace(MOMENTS["before it is judged"], settings="late")
BY_DEFAULT += ("update cut, scaffold",)


@dataclass(frozen=True)
class Undisturbed:
    """A session to which nothing happens, and its folder as it was when the second round began."""

    folder: Path
    begun: Path

    def copy(self, to: Path) -> Path:
        """The begun session somewhere else, under its own name."""
        return Path(shutil.copytree(self.begun, to / self.begun.name))


@pytest.fixture(scope="module")
def undisturbed(place: Any) -> Callable[[str], Undisturbed]:
    made: dict[str, Undisturbed] = {}

    def of(settings: str) -> Undisturbed:
        if settings not in made:
            output, begun = place.path / settings, place.path / f"begun-{settings}"
            asked = [setting.replace("DATA", f"{place.path}/data") for setting in SETTINGS[settings]]
            new = place.new(output, *asked)
            done = place.zk0(new, ("os.mkdir", "round-002/updates", 1), ("copy", str(begun)))
            assert done.code == 0, done.said[-3000:]
            (folder,), (copy,) = output.iterdir(), begun.iterdir()
            made[settings] = Undisturbed(folder, copy)
        return made[settings]

    return of


@pytest.fixture(scope="module")
def calm(undisturbed: Callable[[str], Undisturbed]) -> Path:
    return undisturbed("fedavgm").folder


def rounds(folder: Path) -> tuple[RoundRecord, ...]:
    return Ledger(folder / "ledger.jsonl").read()


def digests(folder: Path) -> list[str]:
    return [record.checkpoint.digest for record in rounds(folder)]


def steps(folder: Path, number: int = 2) -> tuple[int, int]:
    """How often a and b have come to the last step of a round."""
    logs = {name: (folder / "clients" / name / "client.log").read_text() for name in "ab"}
    return logs["a"].count(f"a: round {number} step 6/6"), logs["b"].count(f"b: round {number} step 6/6")


def half_written(folder: Path) -> list[Path]:
    return [p for pattern in ("round-*/.*", "round-*/updates/.*", "models/.*") for p in folder.glob(pattern)]


@pytest.mark.parametrize(
    "moment", [pytest.param(m, id=i, marks=[] if i in BY_DEFAULT else pytest.mark.slow) for i, m in MOMENTS.items()]
)
def test_killed_in_the_second_round(
    place: Any, undisturbed: Callable[[str], Undisturbed], tmp_path: Path, moment: Moment
) -> None:
    expected = undisturbed(moment.settings)
    folder = expected.copy(tmp_path)
    killed = place.zk0(place.again(folder), moment.at, ("kill",) if moment.cut is None else ("cut", moment.cut))
    assert killed.code == -(signal.SIGKILL if moment.cut is None else signal.SIGXFSZ), killed.said[-3000:]
    assert not moment.left or any(folder.glob(moment.left))
    if moment.to_the_end:
        done = place.zk0(place.again(folder))
        assert done.code == 0, done.said[-3000:]
        assert missing(folder) == []
        assert losses(folder) == losses(expected.folder)
    else:
        place.until_recorded(folder)
    assert digests(folder) == digests(expected.folder)
    assert steps(folder) == moment.steps
    assert steps(folder, 1) == (1, 1)
    assert half_written(folder) == []


@pytest.mark.slow
def test_killed_again_and_again(place: Any, calm: Path) -> None:
    """From the first record to the report: ten processes for two rounds."""
    moments: list[tuple[str, str, int]] = [
        ("os.rename", r"/ground\.json", 1),
        ("open", r"/ledger\.jsonl", 1),
        ("told", "step b 1 3", 1),
        ("os.rename", r"round-001/\.weights", 1),
        ("os.rename", r"models/\.checkpoint_round_1", 1),
        ("told", "step a 2 1", 1),
        ("os.link", r"updates/\.b\.", 1),
        ("open", r"/ledger\.jsonl", 1),
        ("os.rename", r"/\.report\.half", 1),
    ]
    output = place.path / "again and again"
    for number, moment in enumerate(moments):
        command = place.new(output) if number == 0 else place.again(next(output.iterdir()))
        killed = place.zk0(command, moment)
        assert killed.code == -signal.SIGKILL, killed.said[-3000:]
    (folder,) = output.iterdir()
    done = place.zk0(place.again(folder))
    assert done.code == 0, done.said[-3000:]
    assert digests(folder) == digests(calm)
    assert steps(folder, 1) == steps(folder, 2) == (1, 1)


def test_refusals_of_a_killed_round_are_not_forgotten(
    place: Any, undisturbed: Callable[[str], Undisturbed], tmp_path: Path
) -> None:
    """Client b cannot keep what it trains, so it is refused, before the session is killed and again after."""
    found = []
    for name in ("calm", "killed"):
        folder = undisturbed("fedavgm").copy(tmp_path / name)
        shutil.rmtree(folder / "clients/b/updates")
        (folder / "clients/b/updates").touch()
        if name == "killed":
            assert place.zk0(place.again(folder), ("os.rename", WEIGHTS, 1)).code == -signal.SIGKILL
        place.until_recorded(folder)
        assert [u.client for u in rounds(folder)[-1].updates] == ["a"]
        found.append(
            (digests(folder), [(r.client, "FileExistsError" in r.reason) for r in rounds(folder)[-1].refusals])
        )
        assert shown(place, "a trains, round 2" if name == "calm" else "a had answered, round 2").is_completed()
        refused = shown(place, "b trains, round 2")
        assert refused.is_failed()
        assert refused.message == rounds(folder)[-1].refusals[-1].reason
        assert shown(place, "train round 2").is_completed(), "a round of which enough is left has not failed"
    assert found[0][0] == found[1][0]
    assert found[0][1] == [("b", True)]
    assert found[1][1] == [("b", True), ("b", True)]


def shown(place: Any, name: str) -> Any:
    """The state of the newest task run of this name in the UI."""
    with SyncPrefectClient(place.environment["PREFECT_API_URL"]) as client:
        named = TaskRunFilter(name=TaskRunFilterName(any_=[name]))
        (run,) = client.read_task_runs(task_run_filter=named, sort=TaskRunSort.EXPECTED_START_TIME_DESC, limit=1)
        return run.state


def workers_of(folder: Path) -> Iterator[int]:
    """Processes whose output goes into this session's folder."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                log = os.readlink(entry / "fd" / "1")  # noqa: PTH115 -- a link that names no path
            except OSError:
                continue
            if log.startswith(str(folder)):
                yield int(entry.name)


class Started:
    """The real `zk0 run` of one round with a worker, from when a client has answered and the other one trains."""

    def __init__(self, place: Any, output: str) -> None:
        settings = ("rounds=1", "checkpoint_interval=0", "federation.workers=1")
        self.path = place.path / output
        self.process = subprocess.Popen(
            [ZK0, *place.new(output, *settings)],
            env=place.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )

    def __enter__(self) -> "Started":
        try:
            while not any(self.path.glob("*/round-001/updates/a.json")):
                assert self.process.poll() is None, self.process.communicate()[1][-2000:]
                time.sleep(0.002)
        except BaseException:  # whoever waits no longer
            self.process.kill()
            raise
        (self.folder,) = self.path.iterdir()
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()

    def end(self, number: int) -> str:
        """Send it a signal; what it says. No worker outlives it."""
        self.process.send_signal(number)
        _, told = self.process.communicate(timeout=60)
        deadline = time.monotonic() + 30
        while left := list(workers_of(self.folder)):
            assert time.monotonic() < deadline, f"workers {left} outlived the session"
            time.sleep(0.05)
        return str(told)


def test_the_command_itself_killed_while_a_client_trains(place: Any, calm: Path) -> None:
    """With a worker of its own, from outside; it is taken up, like everything else here, by a fork."""
    with Started(place, "command") as started:
        started.end(signal.SIGKILL)
    assert not (started.folder / "round-001/weights.safetensors").exists()
    done = place.zk0(place.again(started.folder))
    assert done.code == 0, done.said[-3000:]
    assert digests(started.folder) == digests(calm)[:2]
    assert steps(started.folder, 1) in [(1, 1), (1, 2)]  # b may have come to its last step, but not to its update
    assert list(workers_of(started.folder)) == []


@pytest.mark.slow
def test_ctrl_c_says_how_to_go_on_and_leaves_no_process(place: Any) -> None:
    with Started(place, "stopped") as started:
        told = started.end(signal.SIGINT)
    assert started.process.returncode == 130
    assert f"zk0 run --resume {started.folder}" in told
    assert "Traceback" not in told


def losses(folder: Path) -> list[float]:
    """Those that are drawn."""
    return [drawn["policy_loss"] for drawn in json.loads((folder / "federated_metrics.json").read_text())]


def missing(folder: Path) -> list[str]:
    """What a session promises and is not there."""
    expected = [
        "session.toml",
        "ledger.jsonl",
        "federated_metrics.json",
        "policy_loss_history.json",
        "federated_metrics.png",
        "policy_loss_chart.png",
        "report.html",
        "simulation.log",
        "server/server.log",
        *[f"server/round_{n}_server_eval.json" for n in range(ROUNDS + 1)],
        *[f"clients/{c}/{f}" for c in "ab" for f in ("client.log", "round_1.json", "round_2.json")],
        *[f"round-00{n}/weights.safetensors" for n in range(ROUNDS + 1)],
        *[f"models/checkpoint_round_{ROUNDS}/{f}" for f in ("config.json", "model.safetensors", "README.md")],
    ]
    return [name for name in expected if not (folder / name).is_file()]


def test_a_session_leaves_what_it_promises(calm: Path) -> None:
    assert missing(calm) == []


def test_state_of_the_servers_optimizer_is_that_of_the_last_round(calm: Path) -> None:
    recorded = [record.server_state for record in rounds(calm)]
    assert [len(state) for state in recorded] == [0, *[1] * ROUNDS]
    assert sorted(calm.glob("round-*/server_*")) == [calm / recorded[-1][0].path]
    check_weights(calm / recorded[-1][0].path, recorded[-1][0].digest)


@pytest.mark.slow
@pytest.mark.parametrize("settings", ["scaffold", "int8"])
def test_clients_forget_a_session_that_is_over(undisturbed: Callable[[str], Undisturbed], settings: str) -> None:
    assert list(undisturbed(settings).begun.glob("clients/*/memory/*/*"))
    assert not list(undisturbed(settings).folder.glob("clients/*/memory/*"))


def test_resuming_a_finished_session_changes_nothing(calm: Path, place: Any) -> None:
    before = (calm / "ledger.jsonl").read_bytes()
    done = place.zk0(place.again(calm))
    assert done.code == 0, done.said[-3000:]
    assert (calm / "ledger.jsonl").read_bytes() == before


@pytest.mark.slow
def test_who_comes_late_trains_from_then_on(undisturbed: Callable[[str], Undisturbed]) -> None:
    found = [[u.client for u in record.updates] for record in rounds(undisturbed("late").folder)]
    assert found == [[], ["a", "b"], ["a", "b", "c"]]


@pytest.mark.parametrize("name", ["weights", "server_momentum"])
def test_weights_that_were_touched_are_not_taken_up(calm: Path, place: Any, tmp_path: Path, name: str) -> None:
    folder = Path(shutil.copytree(calm, tmp_path / calm.name))
    weights = folder / "round-002" / f"{name}.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    told = place.zk0(place.again(folder)).one_line
    assert "digest" in told
    assert "round-002" in told


def test_judging_what_is_trained_on_is_refused_and_leaves_nothing(place: Any) -> None:
    judge = f'evaluation.datasets=[{{dataset="local:{place.path}/data/a", last_episodes=2}}]'
    told = place.zk0(place.new("refused", judge)).one_line
    assert "training data of a" in told
    assert "evaluation set" in told
    assert list((place.path / "refused").iterdir()) == []


def test_a_missing_data_set_is_named_and_leaves_nothing(place: Any) -> None:
    clients = f'clients=[{{name="a", dataset="local:{place.path}/data/a"}}, {{name="b", dataset="local:/no/such/set"}}]'
    assert "/no/such/set" in place.zk0(place.new("missing", clients)).one_line
    assert list((place.path / "missing").iterdir()) == []


@pytest.mark.parametrize(
    ("setting", "said"),
    [("rouns=3", "rouns: unknown setting"), ("rounds=0", "rounds:"), ("training.lr=fast", "training.lr:")],
)
def test_wrong_settings_are_told_before_anything_starts(place: Any, setting: str, said: str) -> None:
    assert said in place.zk0(place.new("wrong", setting)).one_line
    assert not (place.path / "wrong").exists()


def test_an_output_folder_that_cannot_be_written_is_named(place: Any) -> None:
    assert "output_dir" in place.zk0(place.new("data/a/meta/info.json")).one_line


@dataclass(frozen=True)
class Full:
    """What finds no room in the second round, and what the user reads then."""

    at: tuple[str, str, int]
    told: str
    left: int = 0
    """Bytes that still fit."""
    settings: str = "fedavgm"


FULL = {
    "aggregate": Full(("open", WEIGHTS, 1), r"round-002/(weights|server_momentum).safetensors: cannot", 300_000),
    "answer": Full(("open", r"002/updates/a\.json", 1), r"round-002/updates/a.json: cannot"),
    "checkpoint": Full(("os.mkdir", CHECKPOINT + "/vlm", 1), r"models/checkpoint_round_2: cannot", 400_000),
    "ledger": Full(("open", r"/ledger\.jsonl", 1), r"ledger.jsonl: cannot"),
    "client": Full(("open", r"a/updates/\.round-002", 1), r"\(a: \S+/a/updates/round-002-\S+: cannot", 100_000),
    "packed answer": Full(("open", r"updates/\.b\.", 1), r"round-002/updates/b.safetensors: cannot", 100_000, "int8"),
}


class SmallDisk:
    """A file system of its own in memory, which only processes in a namespace of their own see."""

    def __init__(self, path: Path) -> None:
        path.mkdir()
        kind = "-m" if os.geteuid() == 0 else "-Urm"
        self.holder = subprocess.Popen(["unshare", kind, "sh"], stdin=-1, stdout=-1, stderr=-2, text=True)
        self.path, self.seen = path, Path(f"/proc/{self.holder.pid}/root{path}")
        self.ballast = path / "ballast"
        self.holder.stdin.write(f"mount -t tmpfs -o size=32m zk0 {path} && echo mounted || echo\n")
        self.holder.stdin.flush()
        self.is_there = self.holder.stdout.readline() == "mounted\n"

    def close(self) -> None:
        self.holder.communicate()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[SmallDisk]:
    if shutil.which("unshare") is None:
        pytest.skip("no unshare here")
    disk = SmallDisk(tmp_path / "disk")
    try:
        if not disk.is_there:
            pytest.skip("this user may not mount a file system")
        yield disk
    finally:
        disk.close()


def goes_on_with_room(place: Any, expected: Undisturbed, folder: Path, seen: Path, **more: Any) -> None:
    """Taken up, the session ends with the weights of one to which nothing happened."""
    ended = place.zk0(place.again(folder), ("open", r"/\.federated_metrics", 1), **more)
    assert ended.code == -signal.SIGKILL, ended.said
    assert digests(seen) == digests(expected.folder)
    assert half_written(seen) == []


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(kind, marks=[pytest.mark.slow] if kind in ("client", "packed answer") else [])
        for kind in FULL
        if kind != "client"
    ],
)
def test_a_full_disk_is_told_and_with_room_made_the_session_goes_on(
    place: Any, undisturbed: Callable[[str], Undisturbed], small_disk: SmallDisk, kind: str
) -> None:
    full = FULL[kind]
    expected, more = undisturbed(full.settings), {"namespace": small_disk.holder.pid}
    seen = expected.copy(small_disk.seen)
    folder = small_disk.path / seen.name
    failed = place.zk0(place.again(folder), full.at, ("fill", str(small_disk.ballast), full.left), **more)
    assert re.search(full.told + " be written whole: no room on its disk; make room there", failed.one_line)
    assert f"then go on with zk0 run --resume {folder}" in failed.one_line
    assert half_written(seen) == []
    assert len(rounds(seen)) == 2
    (small_disk.seen / "ballast").unlink()
    goes_on_with_room(place, expected, folder, seen, **more)
    assert steps(seen) == (1, 1)


@pytest.mark.parametrize(
    "kind", [pytest.param(k, marks=[] if k == "aggregate" else [pytest.mark.slow]) for k in FULL if FULL[k].left]
)
def test_a_file_that_may_not_grow_is_told_too(
    place: Any, undisturbed: Callable[[str], Undisturbed], tmp_path: Path, kind: str
) -> None:
    """Where no file system can be mounted: a limit of the process instead of one of the disk."""
    full = FULL[kind]
    expected = undisturbed(full.settings)
    folder = expected.copy(tmp_path)
    failed = place.zk0(place.again(folder), full.at, ("limit", full.left))
    assert re.search(full.told + " be written whole: file too large for its disk; make room there", failed.one_line)
    assert half_written(folder) == []
    goes_on_with_room(place, expected, folder, folder)

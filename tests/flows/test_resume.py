"""A session that is killed at any point and taken up again ends with the digest of an undisturbed one."""

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO

import numpy as np
import pytest

from zk0.ledger import Ledger
from zk0.session import SO101_JOINTS
from zk0.weights import check_weights

ROUNDS = 3
SESSION = """
name = "mini"
rounds = 3
checkpoint_interval = 1
[contract]
cameras = ["front"]
[policy]
path = "tiny"
[training]
local_steps = 6
batch_size = 8
lr = 1e-3
[federation]
workers = 1
[aggregation]
strategy = "fedavgm"  # the server's optimizer has state of its own, which must be taken up too
[[clients]]
name = "a"
dataset = "local:{data}/a"
[[clients]]
name = "b"
dataset = "local:{data}/b"
[[evaluation.datasets]]
dataset = "local:{data}/judge"
"""


def episode(rng: np.random.Generator) -> list[object]:
    """Twelve frames of a random walk before a rolling picture."""
    from zk0.robot.dataset import RecordedFrame

    states = np.cumsum(rng.normal(size=(13, 6)), axis=0).astype(np.float32) * 5
    image = rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)
    return [
        RecordedFrame(states[t], states[t + 1], {"front": np.roll(image, t, axis=0)}, "Move the arm") for t in range(12)
    ]


class Place:
    """A folder with three small data sets, a session file over them, and how to run it."""

    def __init__(self, path: Path) -> None:
        from zk0.robot.dataset import write_dataset

        self.path = path
        self.environment = {**os.environ, "PREFECT_HOME": str(path / "prefect")}
        for seed, name in enumerate(("a", "b", "judge")):
            rng = np.random.default_rng(seed)
            episodes = [episode(rng) for _ in range(3)]
            write_dataset(path / "data" / name, episodes, fps=10, joints=SO101_JOINTS, robot_type="so101_follower")  # type: ignore[arg-type]
        (path / "session.toml").write_text(SESSION.format(data=path / "data"))

    def command(self, *arguments: str) -> list[str]:
        return [str(Path(sys.executable).with_name("zk0")), "run", *arguments, "--quiet"]

    def new(self, output: str, *settings: str) -> list[str]:
        chosen = [f"output_dir={self.path / output}", f"cache_dir={self.path / 'cache'}", *settings]
        return self.command(str(self.path / "session.toml"), *(a for s in chosen for a in ("--set", s)))

    def run(self, command: list[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=280)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("resume"))


@pytest.fixture(scope="module")
def undisturbed(place: Place) -> Path:
    done = place.run(place.new("calm"))
    assert done.returncode == 0, done.stderr[-3000:]
    (folder,) = (place.path / "calm").iterdir()
    return folder


def digests(folder: Path) -> list[str]:
    return [record.checkpoint.digest for record in Ledger(folder / "ledger.jsonl").read()]


def kill_when(moment: Callable[[Path], bool], command: list[str], output: Path, environment: dict[str, str]) -> Path:
    """Run, SIGKILL at the moment that the session's folder shows, and see that no worker outlives it."""
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 240
    held: list[TextIO] = []
    while True:
        folders = list(output.iterdir()) if output.is_dir() else []
        if folders and moment(folders[0]):
            break
        if folders and lines(folders[0]) == ROUNDS and not held:
            held.append(hold((folders[0] / "ledger.jsonl").open()))
        if process.poll() is not None:
            assert process.stderr is not None
            pytest.fail(f"ended with {process.returncode} before the moment: {process.stderr.read()[-2000:]}")
        if time.monotonic() > deadline:
            process.kill()
            pytest.fail("the moment never came")
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait(10)
    for ledger in held:
        ledger.close()
    deadline = time.monotonic() + 10
    while left := list(workers_of(folders[0])):
        assert time.monotonic() < deadline, f"workers {left} outlived the session"
        time.sleep(0.05)
    return folders[0]


def hold(ledger: TextIO) -> TextIO:
    """Lock the ledger, so that the last round cannot be recorded: the moment before it lasts as long as we like."""
    fcntl.flock(ledger, fcntl.LOCK_EX)
    return ledger


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


def lines(folder: Path) -> int:
    ledger = folder / "ledger.jsonl"
    return ledger.read_text().count("\n") if ledger.is_file() else 0


def while_clients_train(folder: Path) -> bool:
    return lines(folder) == 1 and any((folder / "round-001" / "updates").glob("*.json"))


def before_it_is_judged(folder: Path) -> bool:
    return lines(folder) == 2 and (folder / "round-002" / "weights.safetensors").is_file()


def before_it_is_recorded(folder: Path) -> bool:
    return lines(folder) == 3 and (folder / "models" / "checkpoint_round_3").is_dir()


def test_killed_in_every_round_and_resumed(place: Place, undisturbed: Path) -> None:
    output = place.path / "killed"
    folder = kill_when(while_clients_train, place.new("killed"), output, place.environment)
    again = place.command("--resume", str(folder))
    kill_when(before_it_is_judged, again, output, place.environment)
    kill_when(before_it_is_recorded, again, output, place.environment)
    done = place.run(again)
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(digests(folder)) == ROUNDS + 1
    assert digests(folder) == digests(undisturbed)
    for name in ("a", "b"):
        log = (folder / "clients" / name / "client.log").read_text()
        for number in (2, 3):
            assert log.count(f"{name}: round {number} step 6/6") == 1, "a client trained a finished round again"


@pytest.mark.slow
def test_ctrl_c_says_how_to_go_on_and_leaves_no_process(place: Place) -> None:
    output = place.path / "stopped"
    process = subprocess.Popen(
        place.new("stopped"),
        env=place.environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    deadline = time.monotonic() + 240
    while not (output.is_dir() and any(while_clients_train(f) for f in output.iterdir())):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60)
    (folder,) = output.iterdir()
    assert process.returncode == 130
    assert f"zk0 run --resume {folder}" in told
    assert "Traceback" not in told
    assert list(workers_of(folder)) == []


def test_a_session_leaves_what_it_promises(undisturbed: Path) -> None:
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
        *[f"clients/{c}/{f}" for c in "ab" for f in ("client.log", "round_1.json", "round_3.json")],
        *[f"round-00{n}/weights.safetensors" for n in range(ROUNDS + 1)],
        *[f"models/checkpoint_round_{ROUNDS}/{f}" for f in ("config.json", "model.safetensors", "README.md")],
    ]
    assert [name for name in expected if not (undisturbed / name).is_file()] == []


def test_state_of_the_servers_optimizer_is_that_of_the_last_round(undisturbed: Path) -> None:
    recorded = [record.server_state for record in Ledger(undisturbed / "ledger.jsonl").read()]
    assert [len(state) for state in recorded] == [0, *[1] * ROUNDS]
    assert sorted(undisturbed.glob("round-*/server_*")) == [undisturbed / recorded[-1][0].path]
    check_weights(undisturbed / recorded[-1][0].path, recorded[-1][0].digest)


def test_resuming_a_finished_session_changes_nothing(undisturbed: Path, place: Place) -> None:
    before = (undisturbed / "ledger.jsonl").read_bytes()
    done = place.run(place.command("--resume", str(undisturbed)))
    assert done.returncode == 0, done.stderr[-3000:]
    assert (undisturbed / "ledger.jsonl").read_bytes() == before


def the_one_line(done: subprocess.CompletedProcess[str]) -> str:
    """What the user is told; there must be exactly one line of it, and a failure."""
    told = [line for line in done.stderr.splitlines() if line.startswith("zk0: ")]
    assert done.returncode != 0
    assert len(told) == 1, done.stderr[-3000:]
    assert "Traceback" not in done.stderr
    return told[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        ("aggregation.strategy=scaffold",),
        (
            "aggregation.strategy=fedavg",
            "federation.wire=int8",
            "federation.wire_down=bf16",
            "federation.compress=true",
        ),
    ],
    ids=["scaffold", "int8"],
)
def test_what_clients_remember_is_taken_up_too(place: Place, settings: tuple[str, ...], request) -> None:
    name = request.node.callspec.id
    calm = place.run(place.new(f"calm-{name}", *settings))
    assert calm.returncode == 0, calm.stderr[-3000:]
    (undisturbed,) = (place.path / f"calm-{name}").iterdir()
    output = place.path / f"killed-{name}"
    folder = kill_when(before_it_is_judged, place.new(f"killed-{name}", *settings), output, place.environment)
    done = place.run(place.command("--resume", str(folder)))
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(digests(folder)) == ROUNDS + 1
    assert digests(folder) == digests(undisturbed)
    assert not list(folder.glob("clients/*/memory/*"))  # the session is over


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_who_came_late_is_taken_up_too(place: Place) -> None:
    """c takes part from round 2 on; killed in round 2 and resumed, it is as if nothing had happened."""
    from zk0.robot.dataset import write_dataset

    rng = np.random.default_rng(7)
    episodes = [episode(rng) for _ in range(3)]
    write_dataset(place.path / "data" / "c", episodes, fps=10, joints=SO101_JOINTS, robot_type="so101_follower")  # type: ignore[arg-type]
    clients = ", ".join(
        f'{{name="{n}", dataset="local:{place.path}/data/{n}", from_round={2 if n == "c" else 1}}}' for n in "abc"
    )
    settings = (f"clients=[{clients}]",)
    calm = place.run(place.new("calm-late", *settings))
    assert calm.returncode == 0, calm.stderr[-3000:]
    (undisturbed,) = (place.path / "calm-late").iterdir()
    history = Ledger(undisturbed / "ledger.jsonl").read()
    assert [[u.client for u in r.updates] for r in history] == [[], ["a", "b"], ["a", "b", "c"], ["a", "b", "c"]]
    output = place.path / "killed-late"
    folder = kill_when(before_it_is_judged, place.new("killed-late", *settings), output, place.environment)
    done = place.run(place.command("--resume", str(folder)))
    assert done.returncode == 0, done.stderr[-3000:]
    assert digests(folder) == digests(undisturbed)


@pytest.mark.parametrize("name", ["weights", "server_momentum"])
def test_weights_that_were_touched_are_not_taken_up(undisturbed: Path, place: Place, name: str) -> None:
    weights = undisturbed / "round-003" / f"{name}.safetensors"
    whole = weights.read_bytes()
    try:
        weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        told = the_one_line(place.run(place.command("--resume", str(undisturbed))))
    finally:
        weights.write_bytes(whole)
    assert "digest" in told
    assert "round-003" in told


def test_judging_what_is_trained_on_is_refused_and_leaves_nothing(place: Place) -> None:
    judge = f'evaluation.datasets=[{{dataset="local:{place.path}/data/a", last_episodes=2}}]'
    told = the_one_line(place.run(place.new("refused", judge)))
    assert "training data of a" in told
    assert "evaluation set" in told
    assert list((place.path / "refused").iterdir()) == []


def test_a_missing_data_set_is_named_and_leaves_nothing(place: Place) -> None:
    clients = f'clients=[{{name="a", dataset="local:{place.path}/data/a"}}, {{name="b", dataset="local:/no/such/set"}}]'
    told = the_one_line(place.run(place.new("missing", clients)))
    assert "/no/such/set" in told
    assert list((place.path / "missing").iterdir()) == []


@pytest.mark.parametrize(
    ("setting", "said"),
    [("rouns=3", "rouns: unknown setting"), ("rounds=0", "rounds:"), ("training.lr=fast", "training.lr:")],
)
def test_wrong_settings_are_told_before_anything_starts(place: Place, setting: str, said: str) -> None:
    assert said in the_one_line(place.run(place.new("wrong", setting)))
    assert not (place.path / "wrong").exists()


def test_an_output_folder_that_cannot_be_written_is_named(place: Place) -> None:
    told = the_one_line(place.run(place.new("data/a/meta/info.json")))
    assert "output_dir" in told

"""A session that is killed at any point and then resumed ends with the digests of an uninterrupted one."""

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
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId

from zk0.audit.ledger import Ledger
from zk0.records import RoundRecord
from zk0.storage.session_folder import SessionFolder
from zk0.weights.digests import check_weights

pytestmark = pytest.mark.timeout(900)  # the first test waits for a server and for half a minute of imports

ROUNDS = 2
ZK0 = str(Path(sys.executable).with_name("zk0"))
SCAFFOLD = ("aggregation.strategy=scaffold",)
INT8 = ("aggregation.strategy=fedavg", "federation.wire=int8", "federation.wire_down=bf16", "federation.compress=true")
LATE = ", ".join(f'{{name="{n}", dataset="local:DATA/{n}", from_round={1 + (n == "c")}}}' for n in "abc")
ALL = ", ".join(f'{{name="{n}", dataset="local:DATA/{n}"}}' for n in "abc")
BUFFERED = (f"clients=[{ALL}]", "federation.mode=buffered", "buffer.simulated_seconds={a=1, b=2, c=3}")
SECURE = (
    f"clients=[{ALL}]",
    "federation.secure=true",
    "aggregation.quarantine_factor=0",
    "evaluation.clients_frequency=0",
)
ACT = ("policy.path=tiny-act", "training.features=off")
EVERYTHING = ("training.features=off", "training.scope=all")
SETTINGS = {
    "fedavgm": (),
    "scaffold": SCAFFOLD,
    "int8": INT8,
    "late": (f"clients=[{LATE}]",),
    "act": ACT,
    "all": EVERYTHING,
    "personal": ("training.personal=['model.action_out_proj.*']",),
    "buffered": BUFFERED,
    "buffered-int8": (*BUFFERED, *INT8),
    "secure": SECURE,
}
"""In the second buffered round arrive c, which began in the first one, and then a; b is at work when it ends."""


@dataclass(frozen=True)
class Kill:
    """When the process is killed in the second round, and what is in the session's folder then."""

    at: tuple[str, str, int]
    left: str = ""
    """A file that exists then (a pattern)."""
    cut: int | None = None
    """The file may grow by so many bytes: the process is killed in the middle of a write."""
    steps: tuple[int, int] = (1, 1)
    """How often clients a and b train to the last step of the round, over all attempts."""
    settings: str = "fedavgm"
    to_the_end: bool = False
    """Whether the session resumes to its end, not only until the round is recorded."""


WEIGHTS, CHECKPOINT = r"round-00[12]/\.weights.*tmp", r"models/\.checkpoint_round_2\.\w+\.tmp"
KILLS = {
    "training": Kill(("progress", "optimizer_step a 2 3", 1)),
    "between clients": Kill(("progress", "optimizer_step b 2 1", 1), "clients/a/sessions/*/updates/round-002-*.json"),
    "update cut": Kill(
        ("open", r"a/sessions/.*/updates/\.round-002", 1),
        "clients/a/sessions/*/updates/.round-002-*.tmp",
        200_000,
        steps=(2, 1),
    ),
    "update without record": Kill(
        ("open", r"a/sessions/.*/updates/\.round-002.*json", 1),
        "clients/a/sessions/*/updates/round-002-*.safetensors",
        steps=(2, 1),
    ),
    "result not spooled": Kill(("os.link", r"updates/\.a\.", 1), "clients/b/round_2.json"),
    "between replies": Kill(("os.link", r"updates/\.b\.", 1), "round-002/updates/a.json"),
    "record of a result cut": Kill(("open", r"002/updates/\.b\.json", 1), "round-002/updates/.b.json.*.tmp", 50),
    "aggregation started": Kill(("open", WEIGHTS, 1), "round-002/updates/b.json"),
    "aggregation cut": Kill(("open", WEIGHTS, 1), "round-002/.weights.*.tmp", 300_000),
    "state without weights": Kill(("os.rename", WEIGHTS, 1), "round-002/server_momentum.safetensors"),
    "before evaluation": Kill(("progress", "evaluating round 2", 1), "round-002/weights.safetensors"),
    "after evaluation": Kill(("progress", "^evaluated .* 2", 1), "round-002/weights.safetensors"),
    "clients evaluate": Kill(("open", r"a/\.evaluation_2\.json", 1), "round-002/weights.safetensors"),
    "client score cut": Kill(("open", r"b/\.evaluation_2\.json", 1), "clients/b/.evaluation_2.json.*.tmp", 100),
    "checkpoint incomplete": Kill(
        ("open", CHECKPOINT + "/policy_preprocessor", 1), "models/.checkpoint_round_2.*/model.safetensors"
    ),
    "checkpoint not renamed": Kill(("os.rename", CHECKPOINT, 1), "models/.checkpoint_round_2.*/metrics.json"),
    "before the record": Kill(("open", r"/ledger\.jsonl", 1), "models/checkpoint_round_2/README.md"),
    "record cut": Kill(("open", r"/ledger\.jsonl", 1), "models/checkpoint_round_2/README.md", 100),
    "recorded, files not removed": Kill(("os.remove", r"002/updates/a\.safetensors", 1), to_the_end=True),
    "evaluation record": Kill(("open", r"server/\.round_2_server_eval", 1), to_the_end=True),
    "chart cut": Kill(("open", r"\.policy_loss_chart", 1), ".policy_loss_chart.png.*.tmp", 5000, to_the_end=True),
    "receipts": Kill(("open", r"b/receipts/.*/\.round_2", 1), "clients/a/receipts/*/round_2.json", to_the_end=True),
    "report cut": Kill(("open", r"/\.report\.html", 1), ".report.html.*.tmp", 1000, to_the_end=True),
}
BY_DEFAULT = (
    "training",
    "between replies",
    "aggregation cut",
    "before evaluation",
    "clients evaluate",
    "record cut",
    "evaluation record",
    "report cut",
)
for _name in ("state without weights", "update cut"):
    KILLS[f"{_name}, scaffold"] = replace(KILLS[_name], settings="scaffold", left="")
for _name in ("update without record",):
    KILLS[f"{_name}, int8"] = replace(KILLS[_name], settings="int8", left="")
KILLS["before evaluation, late"] = replace(KILLS["before evaluation"], settings="late")
ARRIVALS = r"002/updates/arrivals\.jsonl"
KILLS |= {
    "training, buffered": replace(KILLS["training"], settings="buffered"),
    "between arrivals": Kill(("os.link", r"updates/\.a\.", 1), "round-002/updates/c.json", settings="buffered"),
    "arrival without line": Kill(("open", ARRIVALS, 1), "round-002/updates/c.json", settings="buffered"),
    "arrival cut": Kill(("open", ARRIVALS, 2), "round-002/updates/a.json", cut=30, settings="buffered"),
    "aggregation cut, buffered": replace(
        KILLS["aggregation cut"], left="round-002/updates/a.json", settings="buffered"
    ),
    "record cut, buffered": replace(KILLS["record cut"], settings="buffered"),
    "arrival without line, int8": Kill(("open", ARRIVALS, 1), settings="buffered-int8"),
}
STATE = r"{}/sessions/.*/secure/round-002/\.state\.json"
"""Written when the client announces keys, shares secrets, begins to mask, has masked, and agrees to the sum."""
KILLS |= {
    "training, secure": replace(KILLS["training"], settings="secure"),
    "keys, secure": Kill(("os.rename", STATE.format("a"), 1), settings="secure"),
    "shares, secure": Kill(("os.rename", STATE.format("b"), 2), settings="secure"),
    "roster, secure": Kill(("open", r"002/updates/sum/\.roster", 1), settings="secure"),
    "masks, secure": Kill(("os.rename", STATE.format("a"), 3), "round-002/updates/sum/roster.json", settings="secure"),
    "masked update cut, secure": Kill(("open", r"b/.*/round-002/\.masked", 1), cut=10_000, settings="secure"),
    "masked, secure": Kill(("os.rename", STATE.format("a"), 4), settings="secure"),
    "masked round, secure": Kill(("open", r"a/\.masked_rounds", 1), settings="secure"),
    "masked update not spooled, secure": Kill(("os.link", r"updates/\.a\.", 1), settings="secure"),
    "between masked updates, secure": Kill(
        ("os.link", r"updates/\.b\.", 1), "round-002/updates/a.json", settings="secure"
    ),
    "survivors, secure": Kill(
        ("open", r"002/updates/sum/\.survivors", 1), "round-002/updates/c.json", settings="secure"
    ),
    "consents, secure": Kill(
        ("os.rename", STATE.format("b"), 5), "round-002/updates/sum/survivors.json", settings="secure"
    ),
    "sum cut, secure": Kill(
        ("open", r"\.secure-sum\.safe", 1), "round-002/updates/sum/survivors.json", 5000, settings="secure"
    ),
    "sum without record, secure": Kill(
        ("open", r"\.secure-sum\.json", 1), "round-002/updates/secure-sum.safetensors", settings="secure"
    ),
    "aggregation cut, secure": replace(
        KILLS["aggregation cut"], left="round-002/updates/secure-sum.json", settings="secure"
    ),
}
KILLS["training, act"] = replace(KILLS["training"], settings="act")
KILLS["training, personal"] = replace(KILLS["training"], settings="personal", to_the_end=True)
KILLS["training, all"] = replace(KILLS["training"], settings="all")
BY_DEFAULT += ("update cut, scaffold", "between arrivals", "consents, secure")


@dataclass(frozen=True)
class UninterruptedSession:
    """A finished session, and a copy of its folder from the start of the second round."""

    folder: Path
    at_round_2: Path

    def copy(self, to: Path) -> Path:
        """Copy the unfinished session to another place, under its own name."""
        return Path(shutil.copytree(self.at_round_2, to / self.at_round_2.name))


@pytest.fixture(scope="module")
def uninterrupted(forked_zk0: Any) -> Callable[[str], UninterruptedSession]:
    made: dict[str, UninterruptedSession] = {}

    def of(settings: str) -> UninterruptedSession:
        if settings not in made:
            output, copies = forked_zk0.path / settings, forked_zk0.path / f"at-round-2-{settings}"
            chosen = [setting.replace("DATA", f"{forked_zk0.path}/data") for setting in SETTINGS[settings]]
            new = forked_zk0.start_arguments(output, *chosen)
            done = forked_zk0.run(new, ("os.mkdir", "round-002/updates", 1), ("copy", str(copies)))
            assert done.code == 0, done.output[-3000:]
            (folder,), (copy,) = output.iterdir(), copies.iterdir()
            made[settings] = UninterruptedSession(folder, copy)
        return made[settings]

    return of


@pytest.fixture(scope="module")
def uninterrupted_folder(uninterrupted: Callable[[str], UninterruptedSession]) -> Path:
    return uninterrupted("fedavgm").folder


def rounds(folder: Path) -> tuple[RoundRecord, ...]:
    return Ledger(folder / "ledger.jsonl").read()


def digests(folder: Path) -> list[str]:
    return [record.checkpoint.digest for record in rounds(folder)]


def steps(folder: Path, number: int = 2) -> tuple[int, int]:
    """Return how often clients a and b have trained to the last step of a round."""
    logs = {name: (folder / "clients" / name / "client.log").read_text() for name in "ab"}
    return logs["a"].count(f"a: round {number} step 6/6"), logs["b"].count(f"b: round {number} step 6/6")


def temporary_files(folder: Path) -> list[Path]:
    return [p for pattern in ("round-*/.*", "round-*/updates/.*", "models/.*") for p in folder.glob(pattern)]


@pytest.mark.parametrize(
    "kill", [pytest.param(k, id=i, marks=[] if i in BY_DEFAULT else pytest.mark.slow) for i, k in KILLS.items()]
)
def test_killed_in_the_second_round(
    forked_zk0: Any, uninterrupted: Callable[[str], UninterruptedSession], tmp_path: Path, kill: Kill
) -> None:
    expected = uninterrupted(kill.settings)
    folder = expected.copy(tmp_path)
    killed = forked_zk0.run(
        forked_zk0.resume_arguments(folder), kill.at, ("kill",) if kill.cut is None else ("cut", kill.cut)
    )
    assert killed.code == -(signal.SIGKILL if kill.cut is None else signal.SIGXFSZ), killed.output[-3000:]
    assert not kill.left or any(folder.glob(kill.left))
    if kill.to_the_end:
        done = forked_zk0.run(forked_zk0.resume_arguments(folder))
        assert done.code == 0, done.output[-3000:]
        assert missing_files(folder) == []
        assert losses(folder) == losses(expected.folder)
    else:
        forked_zk0.run_until_recorded(folder)
    assert digests(folder) == digests(expected.folder)
    assert steps(folder) == kill.steps
    assert steps(folder, 1) == (1, 1)
    assert temporary_files(folder) == []


def test_moved_to_another_place(
    forked_zk0: Any, uninterrupted: Callable[[str], UninterruptedSession], tmp_path: Path
) -> None:
    """Session, data and cache lie in other folders, and the old data is gone: the weights are the same."""
    expected = uninterrupted("fedavgm")
    folder, before, now = expected.copy(tmp_path / "elsewhere"), forked_zk0.path / "data", tmp_path / "data"
    shutil.copytree(before, now)
    places = ["--moved", f"{before}={now}", "--set", f"cache_dir={tmp_path / 'cache'}"]
    hidden = before.rename(before.with_name("hidden data"))
    try:
        done = forked_zk0.run([*forked_zk0.resume_arguments(folder), *places], ("open", r"/\.federated_metrics", 1))
    finally:
        hidden.rename(before)
    assert done.code == -signal.SIGKILL, done.output[-3000:]
    assert digests(folder) == digests(expected.folder)
    assert rounds(folder)[2].evaluation.sets == rounds(expected.folder)[2].evaluation.sets
    session = SessionFolder(folder).read_session()
    assert [client.place for client in session.clients] == [f"{now}/a", f"{now}/b"]
    assert [client.dataset for client in session.clients] == [f"local:{before}/a", f"local:{before}/b"]


@pytest.mark.slow
def test_killed_nine_times(forked_zk0: Any, uninterrupted_folder: Path) -> None:
    """Kill the session nine times between its first file and its report: ten processes for two rounds."""
    triggers: list[tuple[str, str, int]] = [
        ("os.rename", r"/session_setup\.json", 1),
        ("open", r"/ledger\.jsonl", 1),
        ("progress", "optimizer_step b 1 3", 1),
        ("os.rename", r"round-001/\.weights", 1),
        ("os.rename", r"models/\.checkpoint_round_1", 1),
        ("progress", "optimizer_step a 2 1", 1),
        ("os.link", r"updates/\.b\.", 1),
        ("open", r"/ledger\.jsonl", 1),
        ("os.rename", r"/\.report\.html", 1),
    ]
    output = forked_zk0.path / "killed nine times"
    for number, trigger in enumerate(triggers):
        command = (
            forked_zk0.start_arguments(output) if number == 0 else forked_zk0.resume_arguments(next(output.iterdir()))
        )
        killed = forked_zk0.run(command, trigger)
        assert killed.code == -signal.SIGKILL, killed.output[-3000:]
    (folder,) = output.iterdir()
    done = forked_zk0.run(forked_zk0.resume_arguments(folder))
    assert done.code == 0, done.output[-3000:]
    assert digests(folder) == digests(uninterrupted_folder)
    assert steps(folder, 1) == steps(folder, 2) == (1, 1)


def test_refusals_of_a_killed_round_are_recorded(
    forked_zk0: Any, uninterrupted: Callable[[str], UninterruptedSession], tmp_path: Path
) -> None:
    """Client b cannot save its update, so it is refused: before the session is killed, and again after it resumes."""
    found = []
    for name in ("uninterrupted", "killed"):
        folder = uninterrupted("fedavgm").copy(tmp_path / name)
        shutil.rmtree(folder / "clients/b/sessions")
        (folder / "clients/b/sessions").touch()
        if name == "killed":
            assert (
                forked_zk0.run(forked_zk0.resume_arguments(folder), ("os.rename", WEIGHTS, 1)).code == -signal.SIGKILL
            )
        forked_zk0.run_until_recorded(folder)
        assert [u.client for u in rounds(folder)[-1].updates] == ["a"]
        found.append(
            (digests(folder), [(r.client, "NotADirectoryError" in r.reason) for r in rounds(folder)[-1].refusals])
        )
        assert forked_zk0.state_in_ui(
            "a trains, round 2" if name == "uninterrupted" else "a had answered, round 2"
        ).is_completed()
        refused = forked_zk0.state_in_ui("b trains, round 2")
        assert refused.is_failed()
        assert refused.message == rounds(folder)[-1].refusals[-1].reason
        assert forked_zk0.state_in_ui("train round 2").is_completed(), "a round with enough good updates has not failed"
    assert found[0][0] == found[1][0]
    assert found[0][1] == [("b", True)]
    assert found[1][1] == [("b", True), ("b", True)]


def workers_of(folder: Path) -> Iterator[int]:
    """Yield the processes whose output goes into this session's folder."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                log = os.readlink(entry / "fd" / "1")  # noqa: PTH115 -- the link may name a pipe
            except OSError:
                continue
            if log.startswith(str(folder)):
                yield int(entry.name)


class RunningCommand:
    """A `zk0 run` of one round with a worker process; the block begins when one client has answered and one trains."""

    def __init__(self, forked_zk0: Any, output: str) -> None:
        settings = ("rounds=1", "checkpoint_interval=0", "federation.workers=1")
        self.path = forked_zk0.path / output
        self.process = subprocess.Popen(
            [ZK0, *forked_zk0.start_arguments(output, *settings)],
            env=forked_zk0.environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )

    def __enter__(self) -> "RunningCommand":
        try:
            while not any(self.path.glob("*/round-001/updates/a.json")):
                assert self.process.poll() is None, self.process.communicate()[1][-2000:]
                time.sleep(0.002)
        except BaseException:  # a failed assertion or the timeout
            self.process.kill()
            raise
        (self.folder,) = self.path.iterdir()
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()

    def end(self, number: int) -> str:
        """Send a signal and return what the command printed; fail if a worker process outlives it."""
        self.process.send_signal(number)
        _, output = self.process.communicate(timeout=60)
        deadline = time.monotonic() + 30
        while left := list(workers_of(self.folder)):
            assert time.monotonic() < deadline, f"workers {left} outlived the session"
            time.sleep(0.05)
        return str(output)


def test_the_installed_command_killed_while_a_client_trains(forked_zk0: Any, uninterrupted_folder: Path) -> None:
    """Kill the installed command, which has a worker process, from outside; a fork resumes the session."""
    with RunningCommand(forked_zk0, "command") as started:
        started.end(signal.SIGKILL)
    assert not (started.folder / "round-001/weights.safetensors").exists()
    done = forked_zk0.run(forked_zk0.resume_arguments(started.folder))
    assert done.code == 0, done.output[-3000:]
    assert digests(started.folder) == digests(uninterrupted_folder)[:2]
    assert steps(started.folder, 1) in [(1, 1), (1, 2)]  # b may have finished its last step, but not its update
    assert list(workers_of(started.folder)) == []


@pytest.mark.slow
def test_ctrl_c_prints_the_resume_command_and_leaves_no_process(forked_zk0: Any) -> None:
    with RunningCommand(forked_zk0, "stopped") as started:
        output = started.end(signal.SIGINT)
    assert started.process.returncode == 130
    assert f"zk0 run --resume {started.folder}" in output
    assert "Traceback" not in output


def test_sigterm_ends_a_session_like_ctrl_c(forked_zk0: Any) -> None:
    ended = forked_zk0.run(
        forked_zk0.start_arguments("terminated"), ("progress", "^optimizer_step a 1 ", 1), ("terminate",)
    )
    (folder,) = (forked_zk0.path / "terminated").iterdir()
    assert ended.code == 128 + signal.SIGTERM, ended.output
    assert f"zk0 run --resume {folder}" in ended.output
    assert "Traceback" not in ended.output


def losses(folder: Path) -> list[float]:
    """Return the losses in federated_metrics.json."""
    return [row["policy_loss"] for row in json.loads((folder / "federated_metrics.json").read_text())]


def missing_files(folder: Path) -> list[str]:
    """Return the documented files of a session that do not exist."""
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


def test_a_session_writes_all_documented_files(uninterrupted_folder: Path) -> None:
    assert missing_files(uninterrupted_folder) == []


def test_a_secure_session_says_what_its_number_of_clients_means(
    uninterrupted: Callable[[str], UninterruptedSession],
) -> None:
    folder = uninterrupted("secure").folder
    sentence = "Secure aggregation: each of 3 clients masks its update with the 2 others. A sum needs 2 clients"
    assert (folder / "simulation.log").read_text().count(sentence) == 1
    assert sentence in (folder / "report.html").read_text()


def test_only_the_last_state_of_the_server_optimizer_is_kept(uninterrupted_folder: Path) -> None:
    recorded = [record.server_state for record in rounds(uninterrupted_folder)]
    assert [len(state) for state in recorded] == [0, *[1] * ROUNDS]
    assert sorted(uninterrupted_folder.glob("round-*/server_*")) == [uninterrupted_folder / recorded[-1][0].path]
    check_weights(uninterrupted_folder / recorded[-1][0].path, recorded[-1][0].digest)


@pytest.mark.slow
@pytest.mark.parametrize("settings", ["scaffold", "int8"])
def test_clients_delete_their_state_after_the_session(
    uninterrupted: Callable[[str], UninterruptedSession], settings: str
) -> None:
    assert list(uninterrupted(settings).at_round_2.glob("clients/*/sessions/*/*"))
    assert not list(uninterrupted(settings).folder.glob("clients/*/sessions/*"))


def test_resuming_a_finished_session_changes_nothing(uninterrupted_folder: Path, forked_zk0: Any) -> None:
    before = (uninterrupted_folder / "ledger.jsonl").read_bytes()
    done = forked_zk0.run(forked_zk0.resume_arguments(uninterrupted_folder))
    assert done.code == 0, done.output[-3000:]
    assert (uninterrupted_folder / "ledger.jsonl").read_bytes() == before


@pytest.mark.slow
def test_a_late_client_trains_from_its_first_round_on(uninterrupted: Callable[[str], UninterruptedSession]) -> None:
    found = [[u.client for u in record.updates] for record in rounds(uninterrupted("late").folder)]
    assert found == [[], ["a", "b"], ["a", "b", "c"]]


@pytest.mark.parametrize("name", ["weights", "server_momentum"])
def test_changed_weights_are_not_resumed(
    uninterrupted_folder: Path, forked_zk0: Any, tmp_path: Path, name: str
) -> None:
    folder = Path(shutil.copytree(uninterrupted_folder, tmp_path / uninterrupted_folder.name))
    weights = folder / "round-002" / f"{name}.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    error = forked_zk0.run(forked_zk0.resume_arguments(folder)).error_line
    assert "digest" in error
    assert "round-002" in error


def test_an_evaluation_set_with_training_episodes_is_refused_and_leaves_no_folder(forked_zk0: Any) -> None:
    sets = f'evaluation.datasets=[{{dataset="local:{forked_zk0.path}/data/a", last_episodes=2}}]'
    error = forked_zk0.run(forked_zk0.start_arguments("refused", sets)).error_line
    assert "training data of a" in error
    assert "evaluation set" in error
    assert list((forked_zk0.path / "refused").iterdir()) == []


def test_all_clients_and_evaluation_sets_that_cannot_be_used_are_listed(forked_zk0: Any) -> None:
    data = forked_zk0.path / "data"
    for name in ("cut", "cut-1", "cut-2"):
        shutil.copytree(data / "b", data / name)
        for file in (data / name / "data").rglob("*.parquet"):
            file.write_bytes(file.read_bytes()[:-20])
    sets = ", ".join(f'{{dataset="local:{data}/{name}"}}' for name in ("cut-1", "cut-2"))
    clients = ", ".join(f'{{name="{name}", dataset="local:{data}/{name}"}}' for name in ("a", "cut"))
    settings = (f"clients=[{clients}]", f"evaluation.datasets=[{sets}]")
    done = forked_zk0.run(forked_zk0.start_arguments("unusable", *settings))
    assert f"1 of 2 clients cannot take part: local:{data}/cut may not" in done.error_line
    assert "\n2 of 2 evaluation sets cannot be used:\n" in done.output
    listed = {line.split(" may not")[0] for line in done.output.splitlines() if line.startswith("  local:")}
    assert listed == {f"  local:{data}/cut-1", f"  local:{data}/cut-2"}
    assert list((forked_zk0.path / "unusable").iterdir()) == []


def test_a_missing_dataset_is_named_and_leaves_no_folder(forked_zk0: Any) -> None:
    clients = (
        f'clients=[{{name="a", dataset="local:{forked_zk0.path}/data/a"}}, {{name="b", dataset="local:/no/such/set"}}]'
    )
    assert "/no/such/set" in forked_zk0.run(forked_zk0.start_arguments("missing", clients)).error_line
    assert not (forked_zk0.path / "missing").exists()


@pytest.mark.parametrize(
    ("setting", "message"),
    [("rouns=3", "rouns: unknown setting"), ("rounds=0", "rounds:"), ("training.lr=fast", "training.lr:")],
)
def test_wrong_settings_fail_before_anything_starts(forked_zk0: Any, setting: str, message: str) -> None:
    assert message in forked_zk0.run(forked_zk0.start_arguments("wrong", setting)).error_line
    assert not (forked_zk0.path / "wrong").exists()


def test_an_output_folder_that_cannot_be_written_is_named(forked_zk0: Any) -> None:
    assert "output_dir" in forked_zk0.run(forked_zk0.start_arguments("data/a/meta/info.json")).error_line


@dataclass(frozen=True)
class FullDisk:
    """The write that finds the disk full in the second round, and the error message."""

    at: tuple[str, str, int]
    message: str
    left: int = 0
    """Number of bytes that still fit."""
    settings: str = "fedavgm"


FULL = {
    "aggregate": FullDisk(("open", WEIGHTS, 1), r"round-002/(weights|server_momentum).safetensors: cannot", 300_000),
    "answer": FullDisk(("open", r"002/updates/\.a\.json", 1), r"round-002/updates/a.json: cannot"),
    "checkpoint": FullDisk(("open", CHECKPOINT + "/config.json", 1), r"models/checkpoint_round_2: cannot", 400_000),
    "ledger": FullDisk(("open", r"/ledger\.jsonl", 1), r"ledger.jsonl: cannot"),
    "client": FullDisk(
        ("open", r"a/sessions/.*/updates/\.round-002", 1),
        r"\(a: \S+/a/sessions/\S+/updates/round-002-\S+: cannot",
        100_000,
    ),
    "compressed result": FullDisk(
        ("open", r"updates/\.b\.", 1), r"round-002/updates/b.safetensors: cannot", 100_000, "int8"
    ),
    "arrival": FullDisk(("open", ARRIVALS, 1), r"round-002/updates/arrivals.jsonl: cannot", settings="buffered"),
}


class SmallDisk:
    """A small file system in memory, which only processes in its mount namespace see."""

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


def check_resumes(forked_zk0: Any, expected: UninterruptedSession, folder: Path, seen: Path, **more: Any) -> None:
    """Resume the session: it ends with the weights of an uninterrupted one."""
    result = forked_zk0.run(forked_zk0.resume_arguments(folder), ("open", r"/\.federated_metrics", 1), **more)
    assert result.code == -signal.SIGKILL, result.output
    assert digests(seen) == digests(expected.folder)
    assert temporary_files(seen) == []


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(kind, marks=[pytest.mark.slow] if kind in ("client", "compressed result", "arrival") else [])
        for kind in FULL
        if kind != "client"
    ],
)
def test_a_full_disk_is_reported_and_the_session_resumes_after_space_is_freed(
    forked_zk0: Any, uninterrupted: Callable[[str], UninterruptedSession], small_disk: SmallDisk, kind: str
) -> None:
    full = FULL[kind]
    expected, more = uninterrupted(full.settings), {"namespace": small_disk.holder.pid}
    seen = expected.copy(small_disk.seen)
    folder = small_disk.path / seen.name
    failed = forked_zk0.run(
        forked_zk0.resume_arguments(folder), full.at, ("fill", str(small_disk.ballast), full.left), **more
    )
    assert re.search(full.message + " be written: no space left on its disk; free some space", failed.error_line)
    assert f"then continue with zk0 run --resume {folder}" in failed.error_line
    assert temporary_files(seen) == []
    assert len(rounds(seen)) == 2
    (small_disk.seen / "ballast").unlink()
    check_resumes(forked_zk0, expected, folder, seen, **more)
    assert steps(seen) == (1, 1)


@pytest.mark.parametrize(
    "kind", [pytest.param(k, marks=[] if k == "aggregate" else [pytest.mark.slow]) for k in FULL if FULL[k].left]
)
def test_a_file_size_limit_is_reported_and_the_session_resumes(
    forked_zk0: Any, uninterrupted: Callable[[str], UninterruptedSession], tmp_path: Path, kind: str
) -> None:
    """The same with a limit of the process instead of the disk, for machines that may not mount a file system."""
    full = FULL[kind]
    expected = uninterrupted(full.settings)
    folder = expected.copy(tmp_path)
    failed = forked_zk0.run(forked_zk0.resume_arguments(folder), full.at, ("limit", full.left))
    assert re.search(
        full.message + " be written: the file exceeds the allowed size; free some space", failed.error_line
    )
    assert temporary_files(folder) == []
    check_resumes(forked_zk0, expected, folder, folder)


RETRIED = {
    "build tiny", "clients check and join", "analyze videos", "model cards", "decide on a release", "report",
    "read the decision on a release", "render videos round 2", "clients compute features", "send receipts",
    "joining reports", "admit new clients to round 2", "create the session's folder", "write the session setup",
    "read finished rounds", "select the session's policy",
    *(f"{step} round {n}" for n in range(ROUNDS + 1) for step in ("evaluate", "clients evaluate", "record")),
    *(f"{step} round {n}" for n in (1, 2) for step in ("train", "aggregate", "checkpoint", "metrics")),
}  # fmt: skip
"""Task runs of a session that open, rename or link files of its folder."""


def test_each_task_is_tried_again_after_the_disk_of_the_session_was_away(
    forked_zk0: Any, uninterrupted: Callable[[str], UninterruptedSession], prefect_api: str
) -> None:
    """In each task run, the first access to the session's folder fails, as while another machine's disk restarts.

    So does each that the flow makes outside of them, but for the lock and the logs, which it holds open.
    """
    late = SETTINGS["late"][0].replace("DATA", f"{forked_zk0.path}/data")
    of_server = r"^(?!train|clients|flow: .*(?:/\.lock|\.log)$)[^/]*/.*/stale/[^/]+_mini/(?!clients/)|^train.*/updates/"
    of_client = r"^(clients|send receipts|joining reports)[^/]*/.*/clients/"
    arguments = forked_zk0.start_arguments("stale", late, "video.episodes=1", "evaluation.joining_report=true")
    done = forked_zk0.run(arguments, ("open", f"{of_server}|{of_client}", 1), ["stale"])
    assert done.code == 0, done.output[-3000:]
    (folder,) = (forked_zk0.path / "stale").iterdir()
    assert digests(folder) == digests(uninterrupted("late").folder)
    counts = run_counts(prefect_api, folder)
    assert {name for name, count in counts.items() if count == 2} == RETRIED
    assert set(counts.values()) == {1, 2}


@pytest.mark.slow
def test_buffered_training_is_tried_again_after_the_disk_of_the_session_was_away(
    forked_zk0: Any, uninterrupted: Callable[[str], UninterruptedSession], prefect_api: str
) -> None:
    """The first access to the folder of updates fails in each round, when clients are at work."""
    settings = [setting.replace("DATA", f"{forked_zk0.path}/data") for setting in BUFFERED]
    arguments = forked_zk0.start_arguments("stale-buffered", *settings)
    done = forked_zk0.run(arguments, ("open", r"^train.*/round-00\d/updates/", 1), ["stale"])
    assert done.code == 0, done.output[-3000:]
    (folder,) = (forked_zk0.path / "stale-buffered").iterdir()
    assert digests(folder) == digests(uninterrupted("buffered").folder)
    counts = run_counts(prefect_api, folder)
    assert {name for name, count in counts.items() if count == 2} == {"train round 1", "train round 2"}


def run_counts(prefect_api: str, folder: Path) -> dict[str, int]:
    """Return how often each task of a session has run, by the name of its task run."""
    with SyncPrefectClient(prefect_api) as client:
        (run,) = [run for run in client.read_flow_runs() if run.id.hex[-6:] in folder.name]
        of_run = FlowRunFilter(id=FlowRunFilterId(any_=[run.id]))
        return {one.name: one.run_count for one in client.read_task_runs(flow_run_filter=of_run)}


def test_a_policy_that_is_saved_after_its_round_was_recorded(forked_zk0: Any) -> None:
    """The session ends early, and is killed between the saved policy and the record of its digests."""
    settings = ("rounds=3", "patience=1", "checkpoint_interval=0", "training.lr=0.3")
    killed = forked_zk0.run(forked_zk0.start_arguments("late-policy", *settings), ("open", "late_policies", 1))
    assert killed.code == -signal.SIGKILL, killed.output
    (folder,) = (forked_zk0.path / "late-policy").iterdir()
    last = len((folder / "ledger.jsonl").read_text().splitlines()) - 1
    assert last < 3, "the loss fell; expected a learning rate at which it does not"
    assert (folder / f"models/checkpoint_round_{last}/SHA256SUMS").is_file()
    assert not (folder / "late_policies.jsonl").exists()
    resumed = forked_zk0.run(forked_zk0.resume_arguments(folder))
    assert resumed.code == 0, resumed.output
    verified = forked_zk0.run(["verify", str(folder)])
    assert verified.code == 0, verified.output
    assert "ok      late_policies.jsonl" in verified.output
    (folder / "late_policies.jsonl").unlink()
    assert "the session has no recorded SHA-256" in forked_zk0.run(["verify", str(folder)]).output

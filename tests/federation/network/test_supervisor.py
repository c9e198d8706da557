"""Supervised processes: restarted, ended with all that they have started, and never left behind."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from waiting import wait_until

from zk0.errors import SettingsError
from zk0.federation.network.hours import DailyHours
from zk0.federation.network.supervised_folder import ProcessSpec, ProcessStatus, SupervisedFolder
from zk0.federation.network.supervisor import Supervisor

SLEEP = "import time; time.sleep(600)"
WITH_CHILD = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']); "
IGNORES_SIGTERM = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); time.sleep(600)"
)


def python(name: str, code: str, **environment: str) -> ProcessSpec:
    return ProcessSpec(name=name, command=(sys.executable, "-c", code), environment=environment)


def alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False


def group(pid: int) -> list[int]:
    """Processes of the group that a supervised process leads."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and os.getpgid(int(entry.name)) == pid and alive(int(entry.name)):
                found.append(int(entry.name))
        except ProcessLookupError:
            continue
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[SupervisedFolder]:
    found = SupervisedFolder(tmp_path)
    yield found
    found.stop(30)
    assert found.state() is None


def pid_of(folder: SupervisedFolder, name: str) -> int:
    state = folder.state()
    return (state.processes[name].pid or 0) if state and name in state.processes else 0


def start(folder: SupervisedFolder, *processes: ProcessSpec) -> int:
    folder.write_processes(processes)
    supervisor = folder.start()
    wait_until(lambda: all(pid_of(folder, p.name) for p in processes))
    return supervisor.pid


def test_a_process_that_keeps_ending_is_restarted_after_longer_pauses(folder: SupervisedFolder) -> None:
    start(folder, python("short", "print('here'); raise SystemExit(7)"), python("long", SLEEP))
    wait_until(lambda: (state := folder.state()) is not None and state.processes["short"].starts == 3)
    state = folder.state()
    assert state is not None
    assert (state.processes["short"].last_exit, state.processes["long"].starts) == (7, 1)
    lines = folder.log("supervisor").read_text().splitlines()
    assert [line.split("; ")[1] for line in lines[:2]] == ["restart in 2 s", "restart in 4 s"]
    wait_until(lambda: folder.log("short").read_text().count("here") == 3)


def test_a_dependent_process_is_restarted_after_the_other_one(folder: SupervisedFolder) -> None:
    dependent = python("dependent", SLEEP).model_copy(update={"restart_after": "leader"})
    start(folder, dependent, python("leader", SLEEP), python("other", SLEEP))
    first, other = pid_of(folder, "dependent"), pid_of(folder, "other")
    os.kill(pid_of(folder, "leader"), signal.SIGKILL)
    wait_until(lambda: pid_of(folder, "dependent") not in (0, first) and pid_of(folder, "leader") != 0)
    assert pid_of(folder, "other") == other


def test_a_process_has_its_own_environment(folder: SupervisedFolder) -> None:
    start(folder, python("one", f"import os; print(os.environ['COLOR'], flush=True); {SLEEP}", COLOR="red"))
    wait_until(lambda: folder.log("one").read_text() == "red\n")


def test_a_process_ends_with_its_children_even_if_it_ignores_sigterm(folder: SupervisedFolder) -> None:
    start(folder, python("parent", WITH_CHILD + "time.sleep(600)"), python("stubborn", IGNORES_SIGTERM))
    parent = pid_of(folder, "parent")
    wait_until(lambda: len(group(parent)) == 2 and "ready" in folder.log("stubborn").read_text())
    pids = group(parent) + group(pid_of(folder, "stubborn"))
    assert len(pids) == 3
    assert folder.stop(30)
    assert not any(alive(pid) for pid in pids)
    assert not folder.stop(30)


def test_children_that_a_process_leaves_behind_are_killed(folder: SupervisedFolder) -> None:
    go = folder.path / "go"
    start(folder, python("parent", WITH_CHILD + f"import os\nwhile not os.path.exists({str(go)!r}): time.sleep(0.05)"))
    parent = pid_of(folder, "parent")
    wait_until(lambda: len(group(parent)) == 2)
    go.touch()
    wait_until(lambda: group(parent) == [])


def test_a_killed_supervisor_leaves_no_process(folder: SupervisedFolder) -> None:
    supervisor = start(folder, python("one", SLEEP), python("two", SLEEP))
    pids = [pid_of(folder, name) for name in ("one", "two")]
    os.kill(supervisor, signal.SIGKILL)
    wait_until(lambda: not any(alive(pid) for pid in pids))
    assert folder.state() is None


def test_a_supervisor_that_is_not_detached_ends_with_its_parent(folder: SupervisedFolder) -> None:
    folder.write_processes([python("one", SLEEP)])
    code = (
        "import sys, time; from pathlib import Path; from zk0.federation.network import supervised_folder as module; "
    )
    code += "module.SupervisedFolder(Path(sys.argv[1])).start(detached=False); time.sleep(600)"
    starter = subprocess.Popen([sys.executable, "-c", code, str(folder.path)])
    wait_until(lambda: pid_of(folder, "one") != 0)
    pid = pid_of(folder, "one")
    starter.kill()
    starter.wait()
    wait_until(lambda: not alive(pid))


def test_a_folder_has_one_supervisor(folder: SupervisedFolder) -> None:
    start(folder, python("one", SLEEP))
    with pytest.raises(SettingsError, match="its processes are running already"), Supervisor(folder.path, []):
        pass
    assert alive(pid_of(folder, "one"))


class TestHours:
    """With a clock that the test sets."""

    def test_a_process_runs_within_its_hours_only(self, folder: SupervisedFolder) -> None:
        from datetime import time as time_of_day

        clock = [time_of_day(21, 59)]
        folder.write_processes([])  # creates the folder of the logs
        always = python("always", SLEEP)
        nightly = python("nightly", WITH_CHILD + SLEEP).model_copy(update={"hours": DailyHours.parse("22:00-06:00")})
        with Supervisor(folder.path, [always, nightly], lambda: clock[0]) as supervisor:
            thread = threading.Thread(target=supervisor.run)
            thread.start()
            try:
                wait_until(lambda: bool(status(folder, "always").pid) and status(folder, "nightly").outside_hours)
                clock[0] = time_of_day(22, 0)
                wait_until(lambda: status(folder, "nightly").pid is not None)
                night = status(folder, "nightly").pid
                wait_until(lambda: len(group(night)) == 2)
                clock[0] = time_of_day(6, 0)
                wait_until(lambda: status(folder, "nightly").outside_hours)
                assert group(night) == []
                assert status(folder, "always").starts == 1
                clock[0] = time_of_day(23, 0)
                wait_until(lambda: status(folder, "nightly").starts == 2)
            finally:
                supervisor.stopping = True
                thread.join(30)

    @pytest.mark.parametrize("text", ["22-6", "24:00-06:00", "22:00-06:60", "22:00 - 06:00", "", "06:00-06:00"])
    def test_invalid_hours(self, text: str) -> None:
        with pytest.raises(SettingsError, match=r"--hours .*: (expected a span|start equals end)"):
            DailyHours.parse(text)


def status(folder: SupervisedFolder, name: str) -> Any:
    """Status of one process; an empty one before the supervisor has written its state."""
    state = folder.state()
    return state.processes[name] if state and state.processes else ProcessStatus(pid=None, since=0, starts=0)

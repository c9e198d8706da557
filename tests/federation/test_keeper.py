"""Processes that are kept running: started again, ended with all they started, never left behind."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from zk0.errors import SettingsError
from zk0.federation.hours import Hours
from zk0.federation.keeper import Keeper
from zk0.federation.kept import Kept, KeptFolder, Seen

SLEEP = "import time; time.sleep(600)"
WITH_CHILD = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']); "
DEAF = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(600)"


def python(name: str, code: str, **environment: str) -> Kept:
    return Kept(name=name, command=(sys.executable, "-c", code), environment=environment)


def until(holds: Callable[[], bool], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False


def group(pid: int) -> list[int]:
    """Processes of the group that a kept process leads."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and os.getpgid(int(entry.name)) == pid and alive(int(entry.name)):
                found.append(int(entry.name))
        except ProcessLookupError:
            continue
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[KeptFolder]:
    found = KeptFolder(tmp_path)
    yield found
    found.stop(30)
    assert found.state() is None


def pid_of(folder: KeptFolder, name: str) -> int:
    state = folder.state()
    return (state.processes[name].pid or 0) if state and name in state.processes else 0


def start(folder: KeptFolder, *processes: Kept) -> int:
    folder.write(processes)
    keeper = folder.start()
    until(lambda: all(pid_of(folder, p.name) for p in processes))
    return keeper.pid


def test_who_ends_is_started_again_later_and_later(folder: KeptFolder) -> None:
    start(folder, python("short", "print('here'); raise SystemExit(7)"), python("long", SLEEP))
    until(lambda: (state := folder.state()) is not None and state.processes["short"].starts == 3)
    state = folder.state()
    assert state is not None
    assert (state.processes["short"].last_exit, state.processes["long"].starts) == (7, 1)
    said = folder.log("keeper").read_text().splitlines()
    assert [line.split("; ")[1] for line in said[:2]] == ["again in 2 s", "again in 4 s"]
    until(lambda: folder.log("short").read_text().count("here") == 3)


def test_who_follows_another_is_started_anew_with_it(folder: KeptFolder) -> None:
    follower = python("follower", SLEEP).model_copy(update={"follows": "leader"})
    start(folder, follower, python("leader", SLEEP), python("other", SLEEP))
    first, other = pid_of(folder, "follower"), pid_of(folder, "other")
    os.kill(pid_of(folder, "leader"), signal.SIGKILL)
    until(lambda: pid_of(folder, "follower") not in (0, first) and pid_of(folder, "leader") != 0)
    assert pid_of(folder, "other") == other


def test_its_environment_is_its_own(folder: KeptFolder) -> None:
    start(folder, python("one", f"import os; print(os.environ['COLOUR'], flush=True); {SLEEP}", COLOUR="red"))
    until(lambda: folder.log("one").read_text() == "red\n")


def test_it_ends_with_all_that_it_started_even_who_does_not_listen(folder: KeptFolder) -> None:
    start(folder, python("parent", WITH_CHILD + "time.sleep(600)"), python("deaf", DEAF))
    parent = pid_of(folder, "parent")
    until(lambda: len(group(parent)) == 2 and "deaf" in folder.log("deaf").read_text())
    everyone = group(parent) + group(pid_of(folder, "deaf"))
    assert len(everyone) == 3
    assert folder.stop(30)
    assert not any(alive(pid) for pid in everyone)
    assert not folder.stop(30)


def test_what_one_leaves_behind_ends_with_it(folder: KeptFolder) -> None:
    go = folder.path / "go"
    start(folder, python("parent", WITH_CHILD + f"import os\nwhile not os.path.exists({str(go)!r}): time.sleep(0.05)"))
    parent = pid_of(folder, "parent")
    until(lambda: len(group(parent)) == 2)
    go.touch()
    until(lambda: group(parent) == [])


def test_a_keeper_that_is_killed_leaves_nobody(folder: KeptFolder) -> None:
    keeper = start(folder, python("one", SLEEP), python("two", SLEEP))
    pids = [pid_of(folder, name) for name in ("one", "two")]
    os.kill(keeper, signal.SIGKILL)
    until(lambda: not any(alive(pid) for pid in pids))
    assert folder.state() is None


def test_a_keeper_may_end_with_whoever_started_it(folder: KeptFolder) -> None:
    folder.write([python("one", SLEEP)])
    code = "import sys, time; from pathlib import Path; from zk0.federation.kept import KeptFolder; "
    code += "KeptFolder(Path(sys.argv[1])).start(outlives=False); time.sleep(600)"
    starter = subprocess.Popen([sys.executable, "-c", code, str(folder.path)])
    until(lambda: pid_of(folder, "one") != 0)
    pid = pid_of(folder, "one")
    starter.kill()
    starter.wait()
    until(lambda: not alive(pid))


def test_a_folder_has_one_keeper(folder: KeptFolder) -> None:
    start(folder, python("one", SLEEP))
    with pytest.raises(SettingsError, match="its processes are running already"), Keeper(folder.path, []):
        pass
    assert alive(pid_of(folder, "one"))


class TestHours:
    """A clock that the test holds."""

    def test_it_runs_within_its_hours_and_not_outside(self, folder: KeptFolder) -> None:
        from datetime import time as time_of_day

        clock = [time_of_day(21, 59)]
        folder.write([])  # makes the place for logs
        always = python("always", SLEEP)
        nightly = python("nightly", WITH_CHILD + SLEEP).model_copy(update={"hours": Hours.parse("22:00-06:00")})
        with Keeper(folder.path, [always, nightly], lambda: clock[0]) as keeper:
            ticking = threading.Thread(target=keeper.run)
            ticking.start()
            try:
                until(lambda: bool(seen(folder, "always").pid) and seen(folder, "nightly").rests)
                clock[0] = time_of_day(22, 0)
                until(lambda: seen(folder, "nightly").pid is not None)
                night = seen(folder, "nightly").pid
                until(lambda: len(group(night)) == 2)
                clock[0] = time_of_day(6, 0)
                until(lambda: seen(folder, "nightly").rests)
                assert group(night) == []
                assert seen(folder, "always").starts == 1
                clock[0] = time_of_day(23, 0)
                until(lambda: seen(folder, "nightly").starts == 2)
            finally:
                keeper.over = True
                ticking.join(30)

    @pytest.mark.parametrize("text", ["22-6", "24:00-06:00", "22:00-06:60", "22:00 - 06:00", "", "06:00-06:00"])
    def test_what_is_no_span_of_the_day(self, text: str) -> None:
        with pytest.raises(SettingsError, match=r"--hours .*: (expected a span|begins as it ends)"):
            Hours.parse(text)


def seen(folder: KeptFolder, name: str) -> Any:
    """What the keeper says of one process, once it says anything."""
    state = folder.state()
    return state.processes[name] if state and state.processes else Seen(pid=None, since=0, starts=0)

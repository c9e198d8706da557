"""`zk0` commands as forks of one process: importing takes half a minute, so it is done once.

`python session_forks.py` reads one JSON command a line and answers with the exit code, minus the number of the signal
that ended it:

    arguments   of `zk0`; nothing is started anew but the process
    out         file that it prints to
    at          the moment at which something happens: [event, pattern, the how manieth match]; the event is an audit
                event of a file that is opened for writing, renamed, removed, linked or made, before it is, or `told`:
                what the session tells whoever watches
    then        what happens: ["kill"]: SIGKILL; ["cut", N]: the file may grow by N bytes, and the process is ended in
                the middle of the write that wants more; ["limit", N]: such a write fails with EFBIG instead;
                ["fill", FILE, N]: FILE takes all room on its disk but N bytes; ["copy", FOLDER]: the session's folder,
                in which the file's folder lies, is copied into FOLDER as it is now
    namespace   process whose mounts it sees

Instead of `arguments`, `record` is a folder that takes small data sets.
"""

import importlib
import json
import os
import re
import resource
import shutil
import signal
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

EVENTS = ("open", "os.rename", "os.remove", "os.link", "os.mkdir")
WARM = (
    "flows.federated_session flows.terminal flows.stack flows.cli zk0.federation.open zk0.federation.local "
    "zk0.federation.client_app zk0.training.client zk0.training.films zk0.training.judge zk0.aggregation.aggregate "
    "zk0.aggregation.privacy zk0.report.card zk0.report.chart zk0.report.page zk0.federation.quarantine "
    "datasets.io.parquet fastapi graphviz num2words anyio._backends._asyncio PIL.JpegImagePlugin av.subtitles.stream "
    "prefect.flow_engine prefect.task_engine transformers.models.llama.modeling_llama "
    "transformers.models.smolvlm.processing_smolvlm transformers.models.smolvlm.image_processing_pil_smolvlm "
    "transformers.models.smolvlm.video_processing_smolvlm zk0.federation.downlink zk0.report.kept"
)


class Moment:
    """Does something once, just before the matching file operation is carried out."""

    def __init__(self, at: tuple[str, str, int], then: list[Any]) -> None:
        self.event, self.pattern, self.left = at
        makers: dict[str, Any] = {"kill": kill, "cut": cut, "limit": limit, "fill": fill, "copy": copy}
        self.then: Callable[[str], None] = makers[then[0]](*then[1:])

    def audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event in EVENTS and (event != "open" or writes(arguments)):
            self.come(event, " ".join(str(one) for one in arguments[: 1 if event == "open" else 2]))

    def tell(self, event: Any) -> None:
        self.come("told", f"{event.kind} {event.client} {event.round} {event.step} {event.text}")

    def come(self, event: str, text: str) -> None:
        if event == self.event and re.search(self.pattern, text):
            self.left -= 1
            if self.left == 0:
                self.then(text)


def writes(arguments: tuple[Any, ...]) -> bool:
    flags = arguments[2] if isinstance(arguments[2], int) else 0
    return bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)) or any(m in str(arguments[1]) for m in "wax+")


def kill() -> Callable[[str], None]:
    return lambda _: os.kill(os.getpid(), signal.SIGKILL)


def limit(more: int) -> Callable[[str], None]:
    def then(text: str) -> None:
        appended = Path(text).is_file() and not text.endswith(".tmp")  # a spare file is written over from its beginning
        size = Path(text).stat().st_size if appended else 0
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + more, resource.RLIM_INFINITY))

    return then


def cut(more: int) -> Callable[[str], None]:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

    def then(text: str) -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        limit(more)(text)

    return then


def fill(file: str, left: int) -> Callable[[str], None]:
    def then(_: str) -> None:
        handle = os.open(file, os.O_WRONLY | os.O_CREAT)
        disk = os.fstatvfs(handle)
        os.posix_fallocate(handle, 0, disk.f_bavail * disk.f_bsize - left)
        os.close(handle)

    return then


def copy(to: str) -> Callable[[str], None]:
    def then(text: str) -> None:
        session = Path(text.split()[0]).parents[1]
        shutil.copytree(session, Path(to) / session.name)

    return then


def carry_out(command: dict[str, Any]) -> None:
    """One command in this process; ends it."""
    out = os.open(command["out"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(out, 1)
    os.dup2(out, 2)
    code = 1
    try:
        if "namespace" in command:
            see_mounts_of(command["namespace"])
        if "record" in command:
            record(Path(command["record"]))
        else:
            zk0(command["arguments"], command.get("at"), command.get("then", ["kill"]))
        code = 0
    except SystemExit as e:
        code = int(e.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def see_mounts_of(pid: int) -> None:
    here, what = Path.cwd(), os.CLONE_NEWNS
    if Path(f"/proc/{pid}/ns/user").readlink() != Path("/proc/self/ns/user").readlink():
        what |= os.CLONE_NEWUSER
    os.setns(os.pidfd_open(pid), what)
    os.chdir(here)


def zk0(arguments: list[str], at: tuple[str, str, int] | None, then: list[Any]) -> None:
    from flows.cli import app
    from tasks.events import listen

    if at:
        moment = Moment(at, then)
        sys.addaudithook(moment.audit)
        listen(moment.tell)
    app(arguments, prog_name="zk0")


def record(folder: Path) -> None:
    """Four data sets, each of three episodes of twelve frames: a random walk before a rolling picture."""
    import numpy as np

    from zk0.robot.dataset import RecordedFrame, write_dataset
    from zk0.session import SO101_JOINTS

    for seed, name in enumerate(("a", "b", "judge", "c")):
        rng, episodes = np.random.default_rng(seed), []
        for _ in range(3):
            states = np.cumsum(rng.normal(size=(13, 6)), axis=0).astype(np.float32) * 5
            image = rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)
            pictures = [np.roll(image, t, axis=0) for t in range(12)]
            episodes.append(
                [RecordedFrame(states[t], states[t + 1], {"front": pictures[t]}, "Move the arm") for t in range(12)]
            )
        write_dataset(folder / name, episodes, fps=10, joints=SO101_JOINTS, robot_type="so101_follower")


def warm() -> None:
    """What a process does only once and takes long: imports, and loading the compiled kernels."""
    import numpy as np

    for name in WARM.split():
        importlib.import_module(name)
    kernels = importlib.import_module("zk0.aggregation.kernels")
    values, sums = np.ones((1, 1), np.float32), np.ones(1)
    kernels.mean(values, sums, np.flatnonzero(sums), sums)
    kernels.measure(values, values[0], values[0], sums, sums)


def main() -> None:
    """Carry commands out until there are no more."""
    warm()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    warnings.simplefilter("ignore", DeprecationWarning)  # of threads: those here are the allocator's, made for a fork
    for line in sys.stdin:
        if not (pid := os.fork()):
            carry_out(json.loads(line))
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), file=answers, flush=True)


if __name__ == "__main__":
    main()

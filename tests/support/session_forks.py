"""Runs `zk0` commands as forks of one process, so that the imports, which take half a minute, happen only once.

`python session_forks.py` reads one JSON command per line and answers with the exit code, or with minus the number of
the signal that ended the command:

    arguments   arguments of `zk0`
    out         file for its output
    at          trigger of a fault: [event, pattern, number of the match]; the event is an audit event, just before a
                file is opened for writing, renamed, removed, linked or made, or `progress`: a ProgressEvent
    then        the fault: ["kill"]: SIGKILL; ["terminate"]: SIGTERM; ["cut", N]: the file may grow by N bytes, and the
                process is killed in the middle of the write that exceeds them; ["limit", N]: such a write fails with
                EFBIG instead;
                ["stale"]: the pattern is of `TASK RUN: PATH`; in each task run, the first time that such a file is
                opened, renamed or linked, this fails with ESTALE, and no task waits before it is tried again;
                ["fill", FILE, N]: FILE takes all space on its disk but N bytes; ["copy", FOLDER]: no fault, the
                session's folder (the parent of the file's folder) is copied into FOLDER in its state at that time;
                ["kill_others", PID, ...]: SIGKILL to other processes; ["block", LOCKED, EMPTY]: two files of the
                session's folder; whoever locks the first one then hangs, and whoever makes a folder in the second
                one's place fails
    namespace   pid of the process whose mount namespace the command enters

Instead of `arguments`, `record` names a folder in which small datasets are written.
"""

import errno
import fcntl
import gc
import importlib
import json
import os
import pkgutil
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
IMPORTED = (
    "flows.federated_session flows.cli.terminal flows.prefect_local.local_prefect flows.cli.main zk0.federation.open "
    "zk0.federation.engines.local zk0.federation.protocol.client_app zk0.client.client "
    "zk0.evaluation.episode_videos zk0.evaluation.global_model zk0.aggregation.aggregate zk0.aggregation.privacy "
    "zk0.report.model_card zk0.report.charts.session_charts zk0.report.page.session_page "
    "zk0.federation.protocol.quarantine "
    "datasets.io.parquet fastapi graphviz num2words anyio._backends._asyncio PIL.JpegImagePlugin "
    "av.subtitles.stream prefect.flow_engine prefect.task_engine transformers.models.llama.modeling_llama "
    "transformers.models.smolvlm.processing_smolvlm transformers.models.smolvlm.image_processing_pil_smolvlm "
    "transformers.models.smolvlm.video_processing_smolvlm zk0.federation.protocol.downlink zk0.report.setup_facts "
    "zk0.resources.session_needs zk0.resources.disk_limit lerobot_policy_smolvla_bundled zk0.evaluation.dataset_notes "
    "zk0.evaluation.client_plans zk0.evaluation.choose_statistics zk0.evaluation.dataset_agreement "
    "zk0.report.page.session_markdown zk0.report.video.motion_analysis rich._emoji_codes encodings.utf_8_sig "
    "PIL.GifImagePlugin scipy.special "
)


class FaultTrigger:
    """Injects a fault once, just before the matching file operation, or at the matching progress event."""

    def __init__(self, at: tuple[str, str, int], then: list[Any]) -> None:
        self.event, self.pattern, self.left = at
        makers: dict[str, Any] = {
            "kill": kill, "terminate": terminate, "cut": cut, "limit": limit, "fill": fill, "copy": copy,
            "kill_others": kill_others, "block": block,
        }  # fmt: skip
        self.then: Callable[[str], None] = makers[then[0]](*then[1:])

    def audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event in EVENTS and (event != "open" or writes(arguments)):
            self.match(event, " ".join(str(one) for one in arguments[: 1 if event == "open" else 2]))

    def on_progress(self, event: Any) -> None:
        self.match("progress", f"{event.kind} {event.client} {event.round} {event.step} {event.text}")

    def match(self, event: str, text: str) -> None:
        if event == self.event and re.search(self.pattern, text):
            self.left -= 1
            if self.left == 0:
                self.then(text)


class StaleOnce:
    """The disk of the session's folder is away once in each task run, as that of another machine that restarts.

    Outside of them, where the flow itself opens a file, it is away once for each file: the flow does not try again.
    """

    def __init__(self, pattern: str) -> None:
        from prefect import Task
        from prefect.context import FlowRunContext, TaskRunContext

        self.pattern, self.seen, self.contexts = re.compile(pattern), set[Any](), (TaskRunContext, FlowRunContext)
        for module in pkgutil.iter_modules(importlib.import_module("tasks").__path__, "tasks."):
            for found in vars(importlib.import_module(module.name)).values():
                if isinstance(found, Task):
                    found.retry_delay_seconds = 0

    def audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event not in ("open", "os.rename", "os.link"):
            return
        task, flow = (context.get() for context in self.contexts)
        if task is None and flow is None:
            return
        key = f"flow {arguments[0]}" if task is None else task.task_run.id
        name = "flow" if task is None else task.task_run.name
        if key not in self.seen and self.pattern.search(f"{name}: {arguments[0]}"):
            self.seen.add(key)
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), str(arguments[0]))


def writes(arguments: tuple[Any, ...]) -> bool:
    flags = arguments[2] if isinstance(arguments[2], int) else 0
    return bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)) or any(m in str(arguments[1]) for m in "wax+")


def kill() -> Callable[[str], None]:
    return lambda _: os.kill(os.getpid(), signal.SIGKILL)


def terminate() -> Callable[[str], None]:
    return lambda _: os.kill(os.getpid(), signal.SIGTERM)


def limit(more: int) -> Callable[[str], None]:
    def then(text: str) -> None:
        appended = Path(text).is_file() and not text.endswith(".tmp")  # a temporary file is written from its beginning
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
        assert (session / "session.toml").is_file(), f"not a session's folder: {session}"
        shutil.copytree(session, Path(to) / session.name)

    return then


def kill_others(*pids: int) -> Callable[[str], None]:
    def then(_: str) -> None:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)

    return then


def block(locked: str, empty: str) -> Callable[[str], None]:
    def then(text: str) -> None:
        session = Path(text.split()[0]).parents[1]
        fcntl.flock(os.open(session / locked, os.O_RDWR), fcntl.LOCK_EX)
        (session / empty).touch(exist_ok=False)

    return then


def run_command(command: dict[str, Any]) -> None:
    """Run one command in this process, and exit."""
    out = os.open(command["out"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(out, 1)
    os.dup2(out, 2)
    code = 1
    try:
        if "namespace" in command:
            enter_mount_namespace(command["namespace"])
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


def enter_mount_namespace(pid: int) -> None:
    here, what = Path.cwd(), os.CLONE_NEWNS
    if Path(f"/proc/{pid}/ns/user").readlink() != Path("/proc/self/ns/user").readlink():
        what |= os.CLONE_NEWUSER
    os.setns(os.pidfd_open(pid), what)
    os.chdir(here)


def zk0(arguments: list[str], at: tuple[str, str, int] | None, then: list[Any]) -> None:
    from flows.cli.main import zk0_app
    from tasks.events import add_progress_listener

    if at and then == ["stale"]:
        sys.addaudithook(StaleOnce(at[1]).audit)
    elif at:
        trigger = FaultTrigger(at, then)
        sys.addaudithook(trigger.audit)
        add_progress_listener(trigger.on_progress)
    zk0_app(arguments, prog_name="zk0")


def record(folder: Path) -> None:
    """Write four datasets, each with three episodes of twelve frames: a random walk, and an image that moves down."""
    import numpy as np

    from zk0.data.dataset_writer import RecordedFrame, write_dataset
    from zk0.settings.dataset_settings import SO101_JOINTS

    for seed, name in enumerate(("a", "b", "unseen", "c")):
        rng, episodes = np.random.default_rng(seed), []
        for _ in range(3):
            states = np.cumsum(rng.normal(size=(13, 6)), axis=0).astype(np.float32) * 5
            image = rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)
            pictures = [np.roll(image, t, axis=0) for t in range(12)]
            episodes.append(
                [RecordedFrame(states[t], states[t + 1], {"front": pictures[t]}, "Move the arm") for t in range(12)]
            )
        write_dataset(folder / name, episodes, fps=10, joints=SO101_JOINTS, robot_type="so101_follower")


def import_everything() -> None:
    """Do what takes long and a process does only once: import modules, and load the compiled kernels."""
    import numpy as np

    for name in IMPORTED.split():
        importlib.import_module(name)
    kernels = importlib.import_module("zk0.aggregation.kernels")
    values, sums = np.ones((1, 1), np.float32), np.ones(1)
    kernels.weighted_mean_kernel(values, sums, np.flatnonzero(sums), sums)
    kernels.delta_products_kernel(values, values[0], values[0], sums, sums)


def main() -> None:
    """Run commands until standard input ends."""
    import_everything()
    gc.freeze()  # a collection in a fork would copy the memory of all imported objects
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    warnings.simplefilter("ignore", DeprecationWarning)  # forks with threads: those of an allocator that supports it
    for line in sys.stdin:
        if not (pid := os.fork()):
            run_command(json.loads(line))
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), file=answers, flush=True)


if __name__ == "__main__":
    main()

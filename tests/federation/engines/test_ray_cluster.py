"""The Ray engine on a cluster of two nodes that share no folder: the second one sees neither session nor cache."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from cluster_session import all_rounds

from zk0.settings.session import Session

SUPPORT = Path(__file__).parents[2] / "support"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not shutil.which("unshare") or os.geteuid() != 0, reason="hides folders from a process"),
]


@contextmanager
def ray_node(*arguments: str, hidden: tuple[Path, ...] = ()) -> Iterator[None]:
    """A Ray node with one CPU in a process group of its own, in which each hidden folder is another, empty one."""
    mounts = " && ".join(f"mount -t tmpfs none {folder}" for folder in hidden) or "true"
    start = " ".join((sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--num-cpus=1", *arguments))
    command = ["unshare", "--mount", "bash", "-c", f"{mounts} && exec {start}"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, start_new_session=True, **quiet)
    try:
        yield
    finally:
        process.terminate()
        process.wait(30)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[str]:
    """Address of a cluster of two nodes; the second one cannot see the folder `session` and has its own `cache`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    for name in ("session", "cache"):
        (tmp_path / name).mkdir()
    head = ("--head", f"--port={address.rpartition(':')[2]}", "--node-ip-address=127.0.0.1")
    hidden = (tmp_path / "session", tmp_path / "cache")
    with ExitStack() as stack:
        stack.enter_context(ray_node(*head, "--include-dashboard=false", "--disable-usage-stats"))
        wait_for_nodes(address, 1)
        stack.enter_context(ray_node(f"--address={address}", hidden=hidden))
        wait_for_nodes(address, 2)
        yield address


def wait_for_nodes(address: str, count: int, seconds: float = 300.0) -> None:
    """Wait until the cluster has so many nodes."""
    from ray._raylet import GcsClient

    deadline, found = time.monotonic() + seconds, 0
    while found < count:
        assert time.monotonic() < deadline, f"{found} Ray nodes, expected {count}"
        try:
            found = sum(node.state == 0 for node in GcsClient(address=address).get_all_node_info().values())
        except Exception:
            time.sleep(0.5)
        time.sleep(0.2)


def written(session: Session, folder: Path) -> Path:
    """Write the session into its folder."""
    folder.mkdir(exist_ok=True)
    (folder / "session.json").write_text(session.model_dump_json(), encoding="utf-8")
    return folder


@pytest.mark.timeout(1200)
def test_weights_are_sent_as_objects_between_machines_without_a_common_folder(
    cluster: str, session_of: Callable[..., Session], tmp_path: Path
) -> None:
    def session(cache: str, **federation: Any) -> Session:
        made = session_of(("a", "b", "c"), federation=federation)
        return made.model_copy(update={"cache_dir": str(tmp_path / cache)})

    folder = written(session("cache", engine="ray", workers=1, ray_address=cluster), tmp_path / "session")
    command = [sys.executable, str(SUPPORT / "cluster_session.py"), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=800)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found == all_rounds(written(session("local-cache", workers=0), tmp_path / "on-one-machine"))
    logs = (tmp_path / "cache" / "ray" / "session" / "clients").glob("*/client.log")
    trained = sum(log.read_text(encoding="utf-8").count("trained in") for log in logs)
    assert 0 < trained < 13, "the other node trained the rest, in folders that are not seen here"
    assert not (folder / "clients").exists()
    assert not list((tmp_path / "cache").glob("ray/*/weights/*"))

"""What processes of zk0 have in common: they end with their parent, import in less time, need free ports."""

import atexit
import ctypes
import errno
import functools
import gc
import importlib.metadata
import inspect
import os
import re
import signal
import socket
import sys
import threading
import time
from collections import defaultdict
from contextlib import suppress
from pathlib import Path

from zk0.errors import SettingsError

_PR_SET_PDEATHSIG = 1
_NEW_OBJECTS = 10_000
"""More of them than were freed start a collection; by default 700."""
_NAME = re.compile(r"^Name:\s*(\S+)", re.MULTILINE)
"""The line of a distribution's metadata that holds its name."""


def die_with_parent(parent: int, death_signal: signal.Signals = signal.SIGKILL) -> None:
    """Have the kernel signal this process when the thread that started it ends, even by SIGKILL (Linux only).

    Args:
        parent: process id of the parent. Process id 1 is a valid parent in a container.
        death_signal: the signal that this process gets when the parent ends.

    Raises:
        SystemExit: the parent ended before this call.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, death_signal)
    if os.getppid() != parent:
        raise SystemExit("the parent process has ended")


def end_after_parent(parent: int, seconds: float) -> None:
    """Let this process be killed some time after its parent has ended, if it still runs then.

    A process that gets SIGTERM when its parent ends may wait for ever for a server that has ended too.

    Args:
        parent: the parent's pid, from before the start of this process.
        seconds: from the parent's end to SIGKILL.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        time.sleep(seconds)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, name="zk0-parent", daemon=True).start()


def collect_garbage_less_often() -> None:
    """Let this process collect garbage less often: LeRobot and PyTorch are then imported in a quarter less CPU time.

    Imports make half a million objects that stay, and with Python's default they are searched again and again. At the
    end of the process they are not searched at all, which takes 3 s of CPU time.
    """
    gc.set_threshold(_NEW_OBJECTS, *gc.get_threshold()[1:])
    atexit.unregister(gc.freeze)
    atexit.register(gc.freeze)


def search_packages_once() -> None:
    """Let this process search the installed packages once, and faster than the standard library does.

    transformers and diffusers each do so when they are imported, which takes 1.7 s of CPU time a search;
    `installed_packages` takes a tenth.
    """
    importlib.metadata.packages_distributions = functools.cache(installed_packages)


def installed_packages() -> dict[str, list[str]]:
    """Return the distributions that provide each top-level package: `importlib.metadata.packages_distributions`.

    It reads the lists of files as text and looks for no file.
    """
    found = defaultdict[str, list[str]](list)
    for distribution in importlib.metadata.distributions():
        declared = (distribution.read_text("top_level.txt") or "").split()
        packages = declared or _packages_of_files(distribution.read_text("RECORD") or "")
        name = _NAME.search(distribution.read_text("METADATA") or distribution.read_text("PKG-INFO") or "")
        for package in packages:
            found[package].append(name[1] if name else distribution.metadata["Name"])
    return dict(found)


def _packages_of_files(record: str) -> list[str]:
    """Return the importable names at the top of a wheel's RECORD, a CSV file with the path in the first column."""
    tops = dict.fromkeys(line.lstrip('"').partition(",")[0].partition("/")[:2] for line in record.splitlines())
    names = (top if slash else inspect.getmodulename(top) for top, slash in tops)
    return [name for name in dict.fromkeys(names) if name and "." not in name]


def collect_round_garbage() -> None:
    """Free the reference cycles that were made since the last round: the collector itself runs less often.

    It looks at these new objects only, which takes milliseconds.
    """
    gc.collect(1)


def check_port_free(host: str, port: int, setting: str) -> None:
    """Check that a server can listen on this port.

    Args:
        host: address to listen on.
        port: TCP port.
        setting: the option that changes it, for the message.

    Raises:
        SettingsError: it cannot; names the process that uses the port.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as e:
        if e.errno != errno.EADDRINUSE:
            message = f"port {port} on {host}: nothing can listen there ({e.strerror}); choose another with {setting}"
            raise SettingsError(message) from e
        user = _port_user(port)
        raise SettingsError(
            f"port {port} on {host} is in use by {user}; stop that, or choose another port with {setting}"
        ) from e


def _port_user(port: int) -> str:
    """Return the process that listens on a port, as far as this user may see it."""
    for file in _listening_sockets(port):
        for link in Path("/proc").glob("[0-9]*/fd/*"):
            with suppress(OSError):  # a process of another user, or one that has ended
                if str(link.readlink()) == file:
                    folder = link.parents[1]
                    return f"process {folder.name} ({(folder / 'comm').read_text().strip()})"
    return "a process of another user"


def _listening_sockets(port: int) -> list[str]:
    """Return what the file descriptors of sockets that listen on this port link to (Linux only)."""
    rows = [
        line.split()
        for file in (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))
        if file.is_file()
        for line in file.read_text(encoding="ascii").splitlines()[1:]
    ]
    return [f"socket:[{row[9]}]" for row in rows if row[3] == "0A" and int(row[1].rpartition(":")[2], 16) == port]

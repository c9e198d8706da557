"""Federated training of robot policies on LeRobot data: see docs/architecture.md for the packages.

`zk0.run(session)` runs a session (`zk0.session_command.run_session_process`), and `zk0.read(folder)` reads the results
of one as tables (`zk0.stats.session_results.read_session`).
"""

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zk0.session_command import run_session_process as run
    from zk0.stats.session_results import read_session as read

__version__ = version("zk0")
"""Version of the installed distribution."""
__all__ = ["__version__", "read", "run"]


def __getattr__(name: str) -> Any:
    """Import `read` and `run` with their first use: `import zk0` itself must stay cheap."""
    if name == "read":
        from zk0.stats.session_results import read_session

        return read_session
    if name == "run":
        from zk0.session_command import run_session_process

        return run_session_process
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

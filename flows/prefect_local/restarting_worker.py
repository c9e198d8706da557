"""A Prefect worker that is started again when it ends by itself."""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from typing import Self

from flows.prefect_local.prefect_process import PrefectProcess
from zk0.errors import PrefectServerError

_MIN_LIFETIME_SECONDS = 30.0
"""A worker that ends sooner is not started again."""


class RestartingWorker:
    """A worker process for the duration of a block; `restart_if_ended` starts it again when it has ended.

    Prefect's worker ends by itself where a suspended run is resumed before the run's process is gone (`this borrower is
    already holding one of this CapacityLimiter's tokens`, Prefect 3.7). The run waits for the next worker.

    Args:
        start: starts a worker for the duration of a block.
        on_status: called with one line when the worker is started again.
    """

    def __init__(
        self, start: Callable[[], AbstractContextManager[PrefectProcess]], on_status: Callable[[str], None]
    ) -> None:
        self._start, self._on_status = start, on_status
        self._open = ExitStack()

    def __enter__(self) -> Self:
        self._start_process()
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def restart_if_ended(self) -> None:
        """Start the worker again where it has ended.

        Raises:
            PrefectServerError: it has ended soon after its start, so the next one would end soon too.
        """
        try:
            self._process.check_running()
        except PrefectServerError as e:
            if time.monotonic() - self._started_at < _MIN_LIFETIME_SECONDS:
                raise
            self._on_status(f"{e}; starting another worker")
            self._open.close()
            self._start_process()

    def _start_process(self) -> None:
        self._process = self._open.enter_context(self._start())
        self._started_at = time.monotonic()

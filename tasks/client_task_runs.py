"""A Prefect task run for each client's part in a round, nested in the round's own task run.

The UI then shows which clients work, since when, and what they returned. A client runs in another process or on another
machine, where there is no Prefect. So its task run has no task engine and no thread that waits: this module sends the
server the events that an engine would send, from which the server makes task runs.
"""

from types import TracebackType
from typing import Any, Self

from prefect.client.schemas.objects import State, TaskRun
from prefect.context import TaskRunContext
from prefect.events import Event
from prefect.states import Completed, Crashed, Failed, Running

from tasks.events import ProgressEvent, emit_progress, log_line
from tasks.prefect_private import emit_state_change, nested_task_run
from zk0.records import ClientScore, Refusal, Update


class ClientTaskRuns:
    """Starts a task run for each client that is sent a request and ends it with the result, or at the end of the block.

    `collect` calls it as its `zk0.federation.protocol.replies.ResultListener`.

    Args:
        doing: what clients do, such as "trains".
        round_number: the round they do it in.
        shown: whether clients have task runs; else only the round's own task run has their lines.
    """

    def __init__(self, doing: str, round_number: int, shown: bool = True) -> None:
        if (context := TaskRunContext.get()) is None:
            raise RuntimeError("clients work within a task run: call the task, not its function")
        self._parent = context.task_run
        self._doing, self._round, self._shown = doing, round_number, shown
        self._runs: dict[str, tuple[TaskRun, Event | None]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, trace: TracebackType | None) -> None:
        stopped = e is not None and not isinstance(e, Exception)
        for client, (run, _) in self._runs.items():
            if run.end_time is None and stopped:
                self._set_state(client, Crashed(message="the session was stopped before the client answered"))
            elif run.end_time is None:
                self._set_state(client, Failed(message=f"the round ended before the client answered: {e}"))

    def on_request(self, client: str) -> None:
        """Start the client's task run."""
        self._start(client, self._doing)
        self._set_state(client, Running())

    def on_reused(self, update: Update) -> None:
        """Show a completed task run for an update of an earlier attempt; its client is not asked again."""
        self._start(update.client, "had answered")
        self._set_state(update.client, Completed(message=f"in an earlier attempt: {answer_summary(update)}"))
        emit_progress(ProgressEvent(kind="client_answered", client=update.client, round=self._round))

    def on_result(self, found: Update | ClientScore | Refusal) -> None:
        """End the client's task run: completed with its numbers, or failed with the reason of the refusal."""
        if isinstance(found, Refusal):
            self.mark_refused(found)
        else:
            self._set_state(found.client, Completed(message=answer_summary(found)))
        emit_progress(ProgressEvent(kind="client_answered", client=found.client, round=self._round))

    def mark_refused(self, refusal: Refusal) -> None:
        """Mark the client's task run as failed with the reason, also where it had completed."""
        self._set_state(refusal.client, Failed(message=refusal.reason))

    def log_line(self, client: str, text: str) -> None:
        """Log one line, which the UI shows with the client's task run."""
        run, _ = self._runs.get(client, (None, None))
        log_line(f"round {self._round}: {client}{text}", run)

    def _start(self, client: str, doing: str) -> None:
        if not self._shown:
            return
        attempt = f", attempt {self._parent.run_count}" if self._parent.run_count > 1 else ""
        name = f"{client} {doing}, round {self._round}{attempt}"
        self._runs[client] = nested_task_run(name, "client", self._parent), None

    def _set_state(self, client: str, state: State[Any]) -> None:
        if not self._shown:
            return
        run, last = self._runs[client]
        began = run.start_time or state.timestamp
        times: dict[str, Any] = {"start_time": began, "expected_start_time": began}
        if state.is_final() and run.end_time is None:
            times |= {"end_time": state.timestamp, "total_run_time": state.timestamp - began}
        changed = run.model_copy(update={"state": state, **times})
        self._runs[client] = changed, emit_state_change(changed, run.state, last)


def answer_summary(found: Update | ClientScore) -> str:
    """Return the numbers of a client's result, for a log line."""
    if isinstance(found, ClientScore):
        return f"policy loss {found.score.policy_loss:.4f} on held-out episodes"
    return f"loss {found.metrics.policy_loss:.4f}, {found.metrics.local_steps} steps, {found.metrics.seconds:.1f} s"

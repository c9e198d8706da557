"""What each client does in a round as a task run of its own, nested in the round's: who works, since when, what came.

A client works elsewhere, in a process or on a machine where there is no Prefect. So its task run has no engine, and no
thread that waits: the server is sent what an engine would send, the events of which it makes task runs.
"""

from types import TracebackType
from typing import Any, Self
from uuid import uuid4

from prefect.client.schemas.objects import State, TaskRun, TaskRunResult
from prefect.context import TaskRunContext
from prefect.events.schemas.events import Event as PrefectEvent
from prefect.states import Completed, Crashed, Failed, Running
from prefect.utilities.engine import emit_task_run_state_change_event

from tasks.events import Event, say, tell
from zk0.records import ClientScore, Refusal, Update


class ClientRuns:
    """Opens a task run for each client that is asked and closes it with the answer, or at the end of the block.

    It is told what it needs by `collect` (see `zk0.federation.answers.Listener`).

    Args:
        doing: what clients do, such as "trains".
        round_number: the round they do it in.
    """

    def __init__(self, doing: str, round_number: int) -> None:
        if (context := TaskRunContext.get()) is None:
            raise RuntimeError("clients work within a task run: call the task, not its function")
        self._parent = context.task_run
        self._doing, self._round = doing, round_number
        self._runs: dict[str, tuple[TaskRun, PrefectEvent | None]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, trace: TracebackType | None) -> None:
        stopped = e is not None and not isinstance(e, Exception)
        for client, (run, _) in self._runs.items():
            if run.end_time is None and stopped:
                self._enter(client, Crashed(message="the session was stopped before it answered"))
            elif run.end_time is None:
                self._enter(client, Failed(message=f"the round ended before it answered: {e}"))

    def asked(self, client: str) -> None:
        """Its task run begins."""
        self._open(client, self._doing)
        self._enter(client, Running())

    def kept(self, update: Update) -> None:
        """A task run says that an earlier attempt has brought this update, so that its client is not asked."""
        self._open(update.client, "had answered")
        self._enter(update.client, Completed(message=f"in an earlier attempt: {measured(update)}"))
        tell(Event(kind="client", client=update.client, round=self._round))

    def answered(self, found: Update | ClientScore | Refusal) -> None:
        """Its task run ends: completed with what was measured, or failed with the reason of the refusal."""
        if isinstance(found, Refusal):
            self.refused(found)
        else:
            self._enter(found.client, Completed(message=measured(found)))
        tell(Event(kind="client", client=found.client, round=self._round))

    def refused(self, refusal: Refusal) -> None:
        """It is refused, or what had been taken of it is after all."""
        self._enter(refusal.client, Failed(message=refusal.reason))

    def say(self, client: str, text: str) -> None:
        """One log line, shown with the client's task run."""
        run, _ = self._runs.get(client, (None, None))
        say(f"round {self._round}: {client}{text}", run)

    def _open(self, client: str, doing: str) -> None:
        attempt = f", attempt {self._parent.run_count}" if self._parent.run_count > 1 else ""
        run = TaskRun(
            id=uuid4(),
            name=f"{client} {doing}, round {self._round}{attempt}",
            flow_run_id=self._parent.flow_run_id,
            flow_run_run_count=self._parent.flow_run_run_count,
            task_key="client",
            dynamic_key=str(uuid4()),
            task_inputs={"__parents__": [TaskRunResult(id=self._parent.id)]},
            run_count=1,
        )
        self._runs[client] = run, None

    def _enter(self, client: str, state: State[Any]) -> None:
        run, last = self._runs[client]
        began = run.start_time or state.timestamp
        times: dict[str, Any] = {"start_time": began, "expected_start_time": began}
        if state.is_final() and run.end_time is None:
            times |= {"end_time": state.timestamp, "total_run_time": state.timestamp - began}
        entered = run.model_copy(update={"state": state, **times})
        self._runs[client] = entered, emit_task_run_state_change_event(entered, run.state, state, last)


def measured(found: Update | ClientScore) -> str:
    """The numbers of an answer, for people."""
    if isinstance(found, ClientScore):
        return f"policy loss {found.score.policy_loss:.4f} on held-out episodes"
    return f"loss {found.metrics.policy_loss:.4f}, {found.metrics.local_steps} steps, {found.metrics.seconds:.1f} s"
